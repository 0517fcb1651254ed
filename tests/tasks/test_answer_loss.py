from __future__ import annotations

import pytest
import torch

from hf_early_ood.errors import ConfigurationError, DataError, UnsupportedModelError
from hf_early_ood.tasks.answer_loss import QuestionAnsweringLoss, span_logits, with_labels
from hf_early_ood.tasks.losses import loss_for
from tests import families


def own_and_ours(family, start, end):
    model = families.build(family, task="question_answering")
    batch = families.inputs(family, model)
    batch["start_positions"], batch["end_positions"] = torch.tensor(start), torch.tensor(end)
    labeled = with_labels(batch)
    labels = labeled.pop("labels")
    with torch.no_grad():
        return model(**batch).loss, QuestionAnsweringLoss()(model(**labeled), labels)


@pytest.mark.parametrize(
    "family", ["bert", "distilbert", "electra", "gpt2", "llama", "modernbert", "t5", "xlm-roberta"]
)
@pytest.mark.parametrize(
    ("start", "end"),
    [
        ([1, 2, 0, 3], [2, 2, 0, 4]),
        ([1, 2, 0, 7], [2, 2, 0, 9]),  # outside of the input: does not count
        ([1, -1, 0, 3], [2, -1, 0, 4]),  # as in the models: the first token
        ([[1], [2], [0], [3]], [[2], [2], [0], [4]]),
    ],
)
def test_it_is_the_loss_of_the_model(family, start, end):
    theirs, ours = own_and_ours(family, start, end)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("cuts", [(4, 4), (2, 6), (1, 1, 5, 1), (8,)])
def test_parts_add_up_to_the_whole(cuts):
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, 8, 5, generator=generator)
    labels = torch.randint(0, 7, (8, 2), generator=generator)  # 5 and 6 do not count
    counted = int((labels < 5).sum())
    assert 0 < counted < 16
    whole = QuestionAnsweringLoss()({"start_logits": start, "end_logits": end}, labels)
    parts = [
        QuestionAnsweringLoss()((s, e), part, torch.tensor(counted))
        for s, e, part in zip(start.split(cuts), end.split(cuts), labels.split(cuts), strict=True)
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_what_counts_is_counted_as_the_loss_counts():
    batch = {
        "inputs_embeds": torch.zeros(3, 4, 2),
        "start_positions": torch.tensor([0, 4, -5]),
        "end_positions": torch.tensor([[3], [5], [1]]),
    }
    assert with_labels(batch)["labels"].tolist() == [[0, 3], [-100, -100], [0, 1]]
    assert set(batch) == {"inputs_embeds", "start_positions", "end_positions"}
    assert with_labels(only := {"input_ids": torch.zeros(1, 1)}) is only


def test_what_has_no_answers_has_no_loss():
    with pytest.raises(DataError, match=r"no answers.*start_positions"):
        QuestionAnsweringLoss()((torch.zeros(1, 2), torch.zeros(1, 2)), None)
    with pytest.raises(UnsupportedModelError, match=r"does not return start and end logits\. Got: logits"):
        span_logits({"logits": torch.zeros(1, 2)})


def test_places_are_not_smoothed():
    model = families.build("bert", task="question_answering")
    assert isinstance(loss_for(model), QuestionAnsweringLoss)
    with pytest.raises(ConfigurationError, match="Label smoothing is not for question answering"):
        loss_for(model, label_smoothing=0.1)

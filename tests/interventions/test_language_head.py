"""The language head: that of the architecture, on any model of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from hf_early_ood.errors import DataError, UnsupportedModelError
from hf_early_ood.interventions.language_head import LanguageHead
from tests import families

IDS = torch.tensor([[0, 7, 8, 9, 2], [0, 5, 6, 2, 1]])
SEEN = (IDS != families.PAD).long()
LABELS = torch.tensor([[-100, 11, -100, 12, -100], [-100, -100, 13, -100, -100]])
FAMILIES = ["albert", "bert", "camembert", "convbert", "deberta", "deberta-v2", "distilbert", "electra", "roberta"]


def outputs_of(model):
    return model(input_ids=IDS, attention_mask=SEEN, output_hidden_states=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_that_of_the_architecture_with_the_weights_of_the_checkpoint(tmp_path: Path, family):
    whole = families.build(family, task="masked_lm", seed=4)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(0.01)  # zeros, as biases are at first, would look like new ones
    whole.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2).eval()
    head = LanguageHead(model)
    assert head.origin == "checkpoint"
    outputs, expected = outputs_of(model), whole(input_ids=IDS, attention_mask=SEEN)
    logits = head.logits(outputs.hidden_states[-1].flatten(0, 1)).view(expected.logits.shape)
    torch.testing.assert_close(logits[SEEN.bool()], expected.logits[SEEN.bool()])
    theirs = whole(input_ids=IDS, attention_mask=SEEN, labels=LABELS).loss
    torch.testing.assert_close(head.loss(outputs, LABELS), theirs)
    # Summed over parts of an update, it is the mean over all of it.
    torch.testing.assert_close(head.loss(outputs, LABELS, torch.tensor(6)), theirs / 2)
    head.loss(outputs, LABELS).backward()
    whole(input_ids=IDS, attention_mask=SEEN, labels=LABELS).loss.backward()
    for name, parameter in head.parameters.items():
        torch.testing.assert_close(parameter.grad, whole.get_parameter(name).grad)
    tied = model.get_input_embeddings().weight
    torch.testing.assert_close(tied.grad, whole.get_input_embeddings().weight.grad)
    assert all(parameter is not tied for parameter in head.parameters.values())


def test_without_a_head_in_the_checkpoint_it_is_new_and_that_of_its_seed(tmp_path: Path):
    families.build("bert").save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    state = torch.get_rng_state()
    heads = [LanguageHead(model, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert {head.origin for head in heads} == {"new"}
    first, same, other = (head.parameters["cls.predictions.transform.dense.weight"] for head in heads)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    heads[2].load(heads[0].state())
    assert torch.equal(first, other)
    assert LanguageHead(families.build("bert")).origin == "new"  # from no checkpoint at all


def test_no_weights_are_read_where_they_will_be_loaded(tmp_path: Path):
    families.build("bert", task="masked_lm").save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert LanguageHead(model, weights=False).origin == "new"
    with pytest.raises(UnsupportedModelError, match="language head cannot be loaded"):
        LanguageHead(model)


def test_untied_embeddings_are_its_own():
    model = families.build("bert", tie_word_embeddings=False)
    own = LanguageHead(model).parameters
    assert own["cls.predictions.decoder.weight"].shape == model.get_input_embeddings().weight.shape


def test_inside_of_peft_and_with_several_choices():
    model = get_peft_model(families.build("bert", task="multiple_choice"), LoraConfig(r=2))
    head = LanguageHead(model)
    outputs = model(input_ids=IDS[None], attention_mask=SEEN[None], output_hidden_states=True)
    head.loss(outputs, LABELS[None]).backward()
    assert not model.get_input_embeddings().weight.requires_grad


def test_nothing_masked_is_a_loss_of_zero():
    model = families.build("bert")
    loss = LanguageHead(model).loss(outputs_of(model), torch.full_like(LABELS, -100))
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("family", ["gpt2", "llama", "bart", "canine"])
def test_architectures_without_it_are_refused(family):
    with pytest.raises(UnsupportedModelError, match="no masked language modeling"):
        LanguageHead(families.build(family))


def test_heads_that_read_something_else_are_refused():
    with pytest.raises(UnsupportedModelError, match="random_labels or shuffled_tokens"):
        LanguageHead(families.build("funnel"))
    model = families.build("bert")
    head = LanguageHead(model)
    with pytest.raises(UnsupportedModelError, match="hidden state for each position"):
        head.loss(model(input_ids=IDS), LABELS)
    with pytest.raises(DataError, match="no labels of masked tokens"):
        head.loss(outputs_of(model), None)

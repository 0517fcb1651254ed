"""p(y|x) of every task, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from hf_early_ood.errors import DataError, UnsupportedModelError
from hf_early_ood.probes.likelihood import (
    ClassificationLikelihood,
    MultiLabelLikelihood,
    QuestionAnsweringLikelihood,
    RegressionLikelihood,
    Scorer,
    TokenLikelihood,
    likelihood_for,
)
from tests import families
from tests.probes import tasks

B, T, C = 4, 5, 3
PAIRS = [(task, {"causal_lm": "gpt2", "seq2seq_lm": "t5"}.get(task, "bert")) for task in tasks.TASKS]


def nll(likelihood, logits: torch.Tensor, **batch: torch.Tensor) -> torch.Tensor:
    return likelihood.nll(SimpleNamespace(logits=logits), batch)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_predictions_are_in_float32_or_better(dtype: torch.dtype, expected: torch.dtype) -> None:
    logits = torch.randn(B, C, dtype=dtype)
    for outputs in (SimpleNamespace(logits=logits), (logits, "more")):
        result = ClassificationLikelihood().predictions(outputs)
        assert result.dtype == RegressionLikelihood().predictions(outputs).dtype == expected
        assert MultiLabelLikelihood().predictions(outputs).dtype == expected
        torch.testing.assert_close(result[:, 0], logits.to(expected).log_softmax(-1))
    pair = QuestionAnsweringLikelihood().predictions((logits, -logits))
    assert pair.dtype == expected
    torch.testing.assert_close(pair.exp().sum(-1), torch.ones(B, 2, dtype=expected))


@pytest.mark.parametrize(("task", "family"), PAIRS)
def test_the_models_of_each_task_are_known(task: str, family: str) -> None:
    model = tasks.build(task, family)
    likelihood, batch = likelihood_for(model), tasks.inputs(task, model)
    inputs = likelihood.inputs(batch)
    assert not {"labels", "start_positions", "end_positions"} & set(inputs)
    values = likelihood.nll(model(**inputs), batch)
    assert values.shape == (3,)
    assert values.dtype == torch.float64
    assert bool((values > 0).all())


@pytest.mark.parametrize(("task", "family"), PAIRS)
def test_the_model_never_sees_labels(task: str, family: str) -> None:
    model = tasks.build(task, family)
    problem = model.config.problem_type
    losses = []
    model.register_forward_hook(lambda module, args, outputs: losses.append(outputs.get("loss")))
    scorer = Scorer(model, likelihood_for(model), "empirical")
    batch = tasks.inputs(task, model)
    scorer.scores(scorer.predictions(batch), batch, torch.rand(3), 0)
    assert losses == [None]
    assert model.config.problem_type == problem  # it would be set when the model computes a loss


def test_sequence_classification_of_every_family(family: str) -> None:
    assert isinstance(likelihood_for(families.build(family)), ClassificationLikelihood)


def test_peft_is_supported() -> None:
    model = get_peft_model(families.build("bert"), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    assert isinstance(likelihood_for(model), ClassificationLikelihood)


def test_the_config_says_what_is_predicted() -> None:
    assert isinstance(likelihood_for(families.build("bert", num_labels=1)), RegressionLikelihood)
    assert isinstance(likelihood_for(families.build("bert", problem_type="regression")), RegressionLikelihood)
    several = families.build("bert", problem_type="multi_label_classification")
    assert isinstance(likelihood_for(several), MultiLabelLikelihood)
    alone = families.build("bert", num_labels=1)
    alone.config.problem_type = "single_label_classification"
    with pytest.raises(UnsupportedModelError, match=r"one class predicts nothing\. Got: .* num_labels=1"):
        likelihood_for(alone)


def test_models_that_are_refused() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"not known\. Got: BertModel\. Allowed: models of transformers for"
    ):
        likelihood_for(families.build("bert", task="encoder"))
    config = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    with pytest.raises(UnsupportedModelError, match=r"not known\. Got: BertForNextSentencePrediction"):
        likelihood_for(transformers.BertForNextSentencePrediction(config))


def test_question_answering_with_another_head() -> None:
    model = families.build("xlm", task="question_answering")
    batch = families.inputs("xlm", model)
    scorer = Scorer(model, likelihood_for(model), "sampled")
    with pytest.raises(UnsupportedModelError, match=r"does not return start and end logits\. Got: XLMFor.*start_top"):
        scorer.predictions(batch)


@pytest.mark.parametrize(("task", "family"), [pair for pair in PAIRS if pair[0] not in ("masked_lm", "seq2seq_lm")])
def test_labels_are_needed_for_the_nll(task: str, family: str) -> None:
    model = tasks.build(task, family)
    likelihood, batch = likelihood_for(model), tasks.inputs(task, model)
    inputs = likelihood.inputs(batch)
    keys = "start_positions and one named end_positions" if task == "question_answering" else "labels or label"
    with pytest.raises(DataError, match=rf"Labels were asked for, .* none\. Allowed: a tensor named {keys}"):
        likelihood.nll(model(**inputs), inputs)


@pytest.mark.parametrize("wrong", [-100, -1, C])
def test_labels_outside_the_classes(wrong: int) -> None:
    with pytest.raises(DataError, match=rf"not a class of the model\. Got: -?\d+\. Allowed: .* 0 to {C - 1}"):
        nll(ClassificationLikelihood(), torch.randn(B, C), labels=torch.tensor([0, 1, wrong, 0]))


@pytest.mark.parametrize("given", [torch.zeros(B), torch.zeros(B, C), torch.zeros(B - 1, dtype=torch.long)])
@pytest.mark.parametrize("labels", ["empirical", "sampled"])
def test_labels_that_are_not_indices(given: torch.Tensor, labels: str) -> None:
    # Also where they are not needed: numbers for labels mean that the model is trained on another likelihood.
    with pytest.raises(DataError, match=r"not class indices.*multi_label_classification"):
        ClassificationLikelihood().scores(torch.randn(B, 1, C), {"label": given}, labels, torch.rand(B))


def test_several_labels() -> None:
    logits, given = torch.randn(B, C), torch.randint(2, (B, C)).float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, given, reduction="none").sum(-1)
    torch.testing.assert_close(nll(MultiLabelLikelihood(), logits, labels=given), expected)
    torch.testing.assert_close(nll(MultiLabelLikelihood(), logits, labels=given.long()), expected)
    with pytest.raises(DataError, match="not all 0 or 1"):
        nll(MultiLabelLikelihood(), logits, labels=given / 2)
    with pytest.raises(DataError, match=r"do not fit .* 0 or 1 for each of 3 labels"):
        nll(MultiLabelLikelihood(), logits, labels=given[:, 0])


def test_tokens_that_are_ignored() -> None:
    logits, given = torch.randn(B, T, C), torch.randint(C, (B, T))
    given[:, 2] = -100
    given[1] = -100
    expected = torch.nn.functional.cross_entropy(logits.mT, given, reduction="none").sum(-1)
    torch.testing.assert_close(nll(TokenLikelihood(), logits, labels=given), expected)
    shifted = torch.nn.functional.cross_entropy(logits[:, :-1].mT, given[:, 1:], reduction="none").sum(-1)
    torch.testing.assert_close(nll(TokenLikelihood(shifted=True), logits, labels=given), shifted)


@pytest.mark.parametrize("given", [torch.zeros(B, T), torch.zeros(B, T - 1).long(), torch.zeros(B).long()])
@pytest.mark.parametrize("shifted", [False, True])
def test_token_labels_of_another_shape(given: torch.Tensor, shifted: bool) -> None:
    with pytest.raises(DataError, match=r"do not fit .*Allowed: whole numbers, one per position"):
        nll(TokenLikelihood(shifted=shifted), torch.randn(B, T, C), labels=given)


def test_which_tokens_are_predicted() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    labels = torch.tensor([[0, -100, 2, -100, -100], [-100, -100, 1, 1, -100]])
    values = torch.zeros(2, T, C)

    def predicted(likelihood: TokenLikelihood, **batch: torch.Tensor) -> list[list[int]]:
        return likelihood.predicted(likelihood.given(batch, values), batch, values).long().tolist()

    plain, causal = TokenLikelihood(), TokenLikelihood(shifted=True)
    assert predicted(plain, attention_mask=mask) == mask.tolist()
    assert predicted(plain) == torch.ones(2, T).long().tolist()
    assert predicted(plain, attention_mask=mask[:, None, None]) == predicted(plain)  # says nothing about tokens
    assert predicted(plain, labels=labels) == [[1, 0, 1, 0, 0], [0, 0, 1, 1, 0]]
    assert predicted(causal, attention_mask=mask) == [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]]
    assert predicted(causal, labels=labels) == [[0, 1, 0, 0, 0], [0, 1, 1, 0, 0]]
    # The first token behind left padding has a label, but nothing to be predicted from.
    assert predicted(causal, labels=labels, attention_mask=mask) == [[0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]
    with pytest.raises(DataError, match=r"Only labels tell which positions.*DataCollatorForLanguageModeling"):
        predicted(TokenLikelihood(mask=None), attention_mask=mask)


def test_the_decoder_is_shown_the_true_tokens_before() -> None:
    model = tasks.build("seq2seq_lm", "bart")
    batch, likelihood = tasks.inputs("seq2seq_lm", model), likelihood_for(model)
    inputs = likelihood.inputs(batch)
    assert torch.equal(inputs["decoder_input_ids"][:, 1:4], batch["labels"][:, :3])
    own = torch.full((3, 7), 9)
    assert torch.equal(likelihood.inputs({**batch, "decoder_input_ids": own})["decoder_input_ids"], own)
    del batch["labels"]
    with pytest.raises(DataError, match="a tensor named labels or decoder_input_ids"):
        likelihood.inputs(batch)


def test_answers_outside_of_the_input_do_not_count() -> None:
    start, end = torch.randn(2, B, T)
    given = {"start_positions": torch.tensor([0, 4, 2, T]), "end_positions": torch.tensor([[1], [T], [3], [T + 7]])}
    likelihood = QuestionAnsweringLikelihood()
    actual = likelihood.nll((start, end), given)
    p, q = -start.log_softmax(-1), -end.log_softmax(-1)
    expected = torch.stack([p[0, 0] + q[0, 1], p[1, 4], p[2, 2] + q[2, 3], torch.tensor(0.0)])
    torch.testing.assert_close(actual, expected)
    with pytest.raises(DataError, match=r"not a class of the model\. Got: -1\. Allowed: whole numbers from 0 to 4"):
        likelihood.nll((start, end), {**given, "start_positions": torch.tensor([0, -1, 2, 3])})
    with pytest.raises(DataError, match="one start and one end per example"):
        likelihood.nll((start, end), {**given, "start_positions": torch.zeros(B, 2).long()})

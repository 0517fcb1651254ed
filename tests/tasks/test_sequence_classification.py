from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerFast, Trainer, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

from hf_early_ood.errors import ConfigurationError, DataError, UnsupportedModelError
from hf_early_ood.tasks.sequence_classification import (
    SequenceClassificationLoss,
    data_collator,
    empty_classifier,
    is_sequence_classification,
    load_classifier,
    tokenize,
)
from tests import families
from tests.tiny_project import make_project

BUNDLED = "bundled:all-MiniLM-L6-v2"


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter, [CLS] a [SEP] b [SEP]."""
    words = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, **{letter: 4 + i for i, letter in enumerate("abcdef")}}
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", model_max_length=20, cls_token="[CLS]"
    )


# Tokens and batches


def test_tokenize_single_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = Dataset.from_dict({"text": ["a b", "c"], "label": [1, 0], "id": ["x", "y"]})
    dataset = dataset.cast_column("label", ClassLabel(names=["no", "yes"]))
    encoded = tokenize(dataset, tokenizer, max_length=8)
    assert encoded["input_ids"][:] == [[1, 4, 5, 2], [1, 6, 2]]
    assert encoded["labels"][:] == [1, 0]
    assert encoded.features["labels"].names == ["no", "yes"]
    assert not {"text", "label", "id"} & set(encoded.column_names)


def test_tokenize_pairs_cuts_the_longer_text(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = Dataset.from_dict({"text": ["a a a a a"], "text_pair": ["b"], "label": [0]})
    assert tokenize(dataset, tokenizer, max_length=6)["input_ids"][:] == [[1, 4, 4, 2, 5, 2]]


def test_tokenize_says_what_is_missing(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"A column is not there.*Add label"):
        tokenize(Dataset.from_dict({"text": ["a"], "labels": [0]}), tokenizer, max_length=8)


def test_tokenize_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="no examples to tokenize"):
        tokenize(Dataset.from_dict({"text": [], "label": []}), tokenizer, max_length=8)


def test_tokenize_many_is_quiet_and_in_order(
    tokenizer: PreTrainedTokenizerFast, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = Dataset.from_dict({"text": ["a", "b c"] * 1200, "label": [0, 1] * 1200})
    encoded = tokenize(dataset, tokenizer, max_length=8)
    assert encoded["input_ids"][:] == [[1, 4, 2], [1, 5, 6, 2]] * 1200
    assert encoded["labels"][:] == [0, 1] * 1200
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("max_length", [2, 21])
def test_max_length_out_of_range(tokenizer: PreTrainedTokenizerFast, max_length: int) -> None:
    with pytest.raises(ConfigurationError, match=r"max_length does not fit.*Allowed: 3 to 20"):
        tokenize(Dataset.from_dict({"text": ["a"], "label": [0]}), tokenizer, max_length=max_length)


def test_collator_pads_to_the_longest(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = tokenize(Dataset.from_dict({"text": ["a b", "c"], "label": [1, 0]}), tokenizer, max_length=8)
    batch = data_collator(tokenizer)(list(encoded))
    assert batch["input_ids"].tolist() == [[1, 4, 5, 2], [1, 6, 2, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["labels"].tolist() == [1, 0]


def test_collator_needs_a_padding_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.pad_token = None
    with pytest.raises(UnsupportedModelError, match="no padding token"):
        data_collator(tokenizer)


# Loss


def _case(problem: str) -> tuple[dict[str, Any], torch.Tensor]:
    """Fields of a config, and labels for six examples."""
    if problem.startswith("regression"):
        count = int(problem[-1])
        return {"num_labels": count}, torch.randn(6) if count == 1 else torch.randn(6, count)
    if problem == "multi":
        return {"num_labels": 3}, torch.randint(0, 2, (6, 3)).float()
    return {"num_labels": 3}, torch.tensor([0, 2, 1, 1, -100, 0])


CASES = ["single", "multi", "regression1", "regression3"]
TYPES = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression1": "regression",
    "regression3": "regression",
}


# transformers takes several outputs with float labels for multi-label: regression3 has to be stated.
@pytest.mark.parametrize(
    ("problem", "stated"), [*((case, True) for case in CASES), *((case, False) for case in CASES[:3])]
)
def test_value_is_the_models_own(problem: str, stated: bool) -> None:
    fields, labels = _case(problem)
    model = families.build("bert", **fields, problem_type=TYPES[problem] if stated else None)
    inputs = families.inputs("bert", model, batch=6)
    inputs.pop("labels", None)
    ours = SequenceClassificationLoss(model.config)(model(**inputs), labels)
    assert model.config.problem_type == (TYPES[problem] if stated else None)
    own = model(**inputs, labels=labels)
    torch.testing.assert_close(ours, own.loss, rtol=0, atol=0)
    torch.testing.assert_close(SequenceClassificationLoss(model.config)(tuple(own.values())[1:], labels), own.loss)


@pytest.mark.parametrize("problem", CASES)
@pytest.mark.parametrize("cuts", [[2], [1, 5], [1, 2, 3]])
def test_uneven_parts_add_up_to_the_whole(problem: str, cuts: list[int]) -> None:
    fields, labels = _case(problem)
    loss = SequenceClassificationLoss(PretrainedConfig(**fields, problem_type=TYPES[problem]))
    logits = torch.randn(6, fields["num_labels"], dtype=torch.float64, requires_grad=True)
    whole = torch.autograd.grad(loss({"logits": logits}, labels), logits)[0]
    for count in (int(labels.ne(-100).sum()), labels.ne(-100).sum()):
        parts = zip(logits.tensor_split(cuts), labels.tensor_split(cuts), strict=True)
        total = sum(loss({"logits": part}, label, num_items_in_batch=count) for part, label in parts)
        assert isinstance(total, torch.Tensor)
        torch.testing.assert_close(torch.autograd.grad(total, logits)[0], whole)


@pytest.mark.parametrize("count", [None, 7])
def test_label_smoothing_is_that_of_transformers(count: int | None) -> None:
    logits, labels = torch.randn(6, 3), _case("single")[1]
    ours = SequenceClassificationLoss(PretrainedConfig(num_labels=3), label_smoothing=0.2)(
        {"logits": logits}, labels, count
    )
    theirs = LabelSmoother(epsilon=0.2)({"logits": logits.clone()}, labels, num_items_in_batch=count)
    torch.testing.assert_close(ours, theirs)


def test_loss_of_a_part_without_labels() -> None:
    loss = SequenceClassificationLoss(PretrainedConfig(num_labels=3))
    ignored = torch.full((2,), -100)
    assert loss({"logits": torch.randn(2, 3)}, ignored, 4) == 0
    assert loss({"logits": torch.randn(2, 3)}, ignored).isnan()


def test_loss_errors() -> None:
    def config(**fields: Any) -> PretrainedConfig:
        return PretrainedConfig(**{"num_labels": 3, **fields})

    with pytest.raises(DataError, match="has no labels"):
        SequenceClassificationLoss(config())({"logits": torch.zeros(2, 3)}, None)
    with pytest.raises(DataError, match=r"do not fit the logits.*\(2,\).*\(2, 3\)"):
        SequenceClassificationLoss(config(problem_type="regression"))({"logits": torch.zeros(2, 3)}, torch.zeros(2))
    with pytest.raises(ConfigurationError, match="Label smoothing is out of range"):
        SequenceClassificationLoss(config(), label_smoothing=1.0)
    with pytest.raises(ConfigurationError, match="only for single-label"):
        SequenceClassificationLoss(config(num_labels=1), label_smoothing=0.1)
    with pytest.raises(DataError, match="needs integer labels"):
        SequenceClassificationLoss(config(), label_smoothing=0.1)({"logits": torch.zeros(2, 3)}, torch.zeros(2, 3))


def test_unknown_problem_type() -> None:
    config = PretrainedConfig(num_labels=3)
    config.__dict__["problem_type"] = "ranking"
    with pytest.raises(ConfigurationError, match=r"Unknown problem type.*ranking"):
        SequenceClassificationLoss(config)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (4, 2), (3, 3)])
def test_trainer_takes_the_same_step_however_the_batch_is_cut(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, batch_size: int, accumulation: int
) -> None:
    texts = ["a b c", "d", "e f", "a", "b b b b", "c d", "e", "f f f"]
    dataset = tokenize(Dataset.from_dict({"text": texts, "label": [0, 1, 2, 0, 1, 2, 0, 0]}), tokenizer, 16)
    model = families.build("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    start = model.classifier.weight.detach().clone()
    outputs = model(**data_collator(tokenizer)(list(dataset)))
    expected = torch.autograd.grad(outputs.loss, model.classifier.weight)[0]
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    Trainer(
        model,
        arguments,
        train_dataset=dataset,
        data_collator=data_collator(tokenizer),
        compute_loss_func=SequenceClassificationLoss(model.config),
    ).train()
    torch.testing.assert_close(start - model.classifier.weight, expected, rtol=1e-4, atol=1e-6)


# Model


def test_bundled_model_with_a_seeded_head() -> None:
    model, tokenizer = load_classifier(BUNDLED, ["negative", "neutral", "positive"], seed=3)
    same, _ = load_classifier(BUNDLED, ["negative", "neutral", "positive"], seed=3)
    other, _ = load_classifier(BUNDLED, ["negative", "neutral", "positive"], seed=4)
    assert model.config.label2id == {"negative": 0, "neutral": 1, "positive": 2}
    assert model.classifier.weight.shape == (3, 384)
    assert torch.equal(model.classifier.weight, same.classifier.weight)
    assert not torch.equal(model.classifier.weight, other.classifier.weight)
    weights = [m.bert.encoder.layer[0].attention.self.query.weight for m in (model, other)]
    assert torch.equal(*weights)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    batch = data_collator(tokenizer)([dict(tokenizer("good", return_token_type_ids=True), labels=2)])
    assert torch.isfinite(model(**batch).loss)


@pytest.fixture
def decoder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Folder of a tiny GPT-2 in half precision, whose tokenizer has no padding token."""
    families.build("gpt2", pad_token_id=None).to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_decoder_gets_a_padding_token(decoder: Path) -> None:
    model, tokenizer = load_classifier(str(decoder), ["a", "b", "c"])
    assert tokenizer.pad_token == tokenizer.eos_token == "[SEP]"
    assert model.config.pad_token_id == tokenizer.pad_token_id == 2
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model(input_ids=torch.tensor([[4, 5], [4, 2]])).logits.shape == (2, 3)


def test_no_padding_and_no_end_token(decoder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.eos_token = None
    tokenizer.save_pretrained(decoder)
    with pytest.raises(UnsupportedModelError, match="neither a padding nor an end-of-sequence token"):
        load_classifier(str(decoder), ["a", "b", "c"])


@pytest.mark.parametrize("names", [["a"], ["a", "a"], []])
def test_labels_of_a_classifier(names: list[str]) -> None:
    with pytest.raises(DataError, match="Labels are not usable"):
        load_classifier(BUNDLED, names)


def test_empty_classifier_leaves_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    model = empty_classifier(BUNDLED, num_labels=5)
    assert model.classifier.weight.shape == (5, 384)
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    assert torch.equal(before, torch.get_rng_state())


def test_is_sequence_classification(family: str) -> None:
    assert is_sequence_classification(families.build(family))


def test_other_models_are_not_sequence_classification() -> None:
    assert not is_sequence_classification(families.build("bert", task="token_classification"))
    assert not is_sequence_classification(torch.nn.Linear(2, 2))
    lora = get_peft_model(families.build("bert"), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    assert is_sequence_classification(lora)
    other = families.build("bert", task="token_classification")
    assert not is_sequence_classification(get_peft_model(other, LoraConfig(target_modules=["query"])))


def test_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"tokenizer cannot be loaded.*Got: .*nowhere.*Check the name"):
        load_classifier(str(tmp_path / "nowhere"), ["no", "yes"])


def test_checkpoint_without_its_encoder_is_refused(tmp_path: Path) -> None:
    make_project(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path / "model")
    config.num_hidden_layers += 1
    config.save_pretrained(tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match=r"lacks weights below the head.*16 missing.*encoder\.layer\.3"):
        load_classifier(str(tmp_path / "model"), ["no", "yes"])


def test_advice_for_a_folder_is_not_about_its_name(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnsupportedModelError, match="A file in the folder is missing or broken") as caught:
        empty_classifier(str(tmp_path))
    assert "name" not in caught.value.fix

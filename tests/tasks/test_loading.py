from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, PreTrainedTokenizerFast

from hf_early_ood.errors import DataError, UnsupportedModelError
from hf_early_ood.tasks import TASKS, MultipleChoice, SequenceClassification, task_of_model
from hf_early_ood.tasks.sequence_classification import data_collator
from tests import families
from tests.tiny_project import make_project

BUNDLED = "bundled:all-MiniLM-L6-v2"
TASK = SequenceClassification()


def test_bundled_model_with_a_seeded_head() -> None:
    model, tokenizer = TASK.load(BUNDLED, ["negative", "neutral", "positive"], seed=3)
    same, _ = TASK.load(BUNDLED, ["negative", "neutral", "positive"], seed=3)
    other, _ = TASK.load(BUNDLED, ["negative", "neutral", "positive"], seed=4)
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
    model, tokenizer = TASK.load(str(decoder), ["a", "b", "c"])
    assert tokenizer.pad_token == tokenizer.eos_token == "[SEP]"
    assert model.config.pad_token_id == tokenizer.pad_token_id == 2
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model(input_ids=torch.tensor([[4, 5], [4, 2]])).logits.shape == (2, 3)


def test_no_padding_and_no_end_token(decoder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.eos_token = None
    tokenizer.save_pretrained(decoder)
    with pytest.raises(UnsupportedModelError, match="neither a padding nor an end-of-sequence token"):
        TASK.load(str(decoder), ["a", "b", "c"])


@pytest.mark.parametrize("names", [["a"], ["a", "a"], []])
def test_labels_of_a_classifier(names: list[str]) -> None:
    with pytest.raises(DataError, match="Labels are not usable"):
        TASK.load(BUNDLED, names)


@pytest.fixture(params=["bert", "xlm-roberta", "gpt2"])
def classifier(request, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[Path, torch.Tensor]:
    """Folder of a tiny classifier of no, maybe, yes, and its logits for a text."""
    names = {"id2label": {0: "no", 1: "maybe", 2: "yes"}, "label2id": {"no": 0, "maybe": 1, "yes": 2}}
    model = families.build(request.param, num_labels=3, pad_token_id=0)
    model.config.update(names)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path, model.eval()(input_ids=torch.tensor([[4, 5, 6]])).logits


def test_classes_of_a_checkpoint_are_taken_by_name(classifier) -> None:
    folder, logits = classifier
    model, _ = TASK.load(str(folder), ["yes", "no", "maybe"])
    assert model.config.id2label == {0: "yes", 1: "no", 2: "maybe"}
    assert torch.equal(model.eval()(input_ids=torch.tensor([[4, 5, 6]])).logits, logits[:, [2, 0, 1]])


def test_head_for_another_number_of_classes_is_replaced(classifier, caplog) -> None:
    folder, _ = classifier
    with caplog.at_level("WARNING"):
        model, _ = TASK.load(str(folder), ["no", "yes"], seed=3)
    same, _ = TASK.load(str(folder), ["no", "yes"], seed=3)
    assert "is for no, maybe, yes: a new one takes its place" in caplog.text
    given = [one.eval()(input_ids=torch.tensor([[4, 5, 6]])).logits for one in (model, same)]
    assert given[0].shape == (1, 2)
    assert torch.equal(*given)
    assert TASK.load(str(folder), ["no", "maybe", "yes"])[0](input_ids=torch.tensor([[4, 5, 6]])).logits.shape == (1, 3)


def test_empty_model_leaves_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    model = TASK.empty(BUNDLED, num_labels=5)
    assert model.classifier.weight.shape == (5, 384)
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    assert torch.equal(before, torch.get_rng_state())


def test_task_of_every_family(family: str) -> None:
    assert task_of_model(families.build(family)) == "sequence_classification"


@pytest.mark.parametrize("task", ["sequence_classification", "token_classification", "multiple_choice"])
def test_task_of_a_model(task: str) -> None:
    model = families.build("bert", task=task)
    assert task_of_model(model) == task
    assert task_of_model(type("Mine", (type(model),), {})(model.config)) == task
    assert task_of_model(get_peft_model(model, LoraConfig(target_modules=["query"]))) == task


def test_models_of_no_task() -> None:
    assert task_of_model(torch.nn.Linear(2, 2)) is None
    assert task_of_model(families.build("bert", task="encoder")) is None
    assert task_of_model(families.build("gpt2", task="causal_lm")) is None


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_loads_the_bundled_encoder(name: str) -> None:
    task = TASKS[name]()
    assert task.name == name
    model, tokenizer = task.load(BUNDLED, ["a", "b", "c"], seed=1)
    again, _ = task.load(BUNDLED, ["a", "b", "c"], seed=1)
    assert task_of_model(model) == task_of_model(task.empty(BUNDLED)) == name
    assert tokenizer.pad_token == "[PAD]"
    assert all(torch.equal(weight, again.state_dict()[path]) for path, weight in model.state_dict().items())


def test_choices_have_no_names() -> None:
    model, _ = MultipleChoice().load(BUNDLED, ["only one"])
    assert model.classifier.weight.shape == (1, 384)
    assert "only one" not in model.config.label2id


def test_model_without_a_head_for_the_task(decoder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"cannot be loaded: .*AutoModelForMultipleChoice"):
        MultipleChoice().load(str(decoder), ())
    with pytest.raises(UnsupportedModelError, match=r"cannot be loaded: .*AutoModelForMultipleChoice"):
        MultipleChoice().empty(str(decoder))


def test_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"tokenizer cannot be loaded.*Got: .*nowhere.*Check the name"):
        TASK.load(str(tmp_path / "nowhere"), ["no", "yes"])


def test_checkpoint_without_its_encoder_is_refused(tmp_path: Path) -> None:
    make_project(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path / "model")
    config.num_hidden_layers += 1
    config.save_pretrained(tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match=r"lacks weights below the head.*16 missing.*encoder\.layer\.3"):
        TASK.load(str(tmp_path / "model"), ["no", "yes"])


def test_advice_for_a_folder_is_not_about_its_name(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnsupportedModelError, match="A file in the folder is missing or broken") as caught:
        TASK.empty(str(tmp_path))
    assert "name" not in caught.value.fix

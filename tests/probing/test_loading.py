"""Saved models come with the head they were saved with, or not at all."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, BertForSequenceClassification

from hf_early_ood.errors import ResumeError, UnsupportedModelError
from hf_early_ood.probing import load_saved_model, probe_checkpoints
from hf_early_ood.probing.checkpoints import weights_sha256
from hf_early_ood.probing.loading import read_blueprint
from tests import families
from tests.probing.saved import request, save_classifier
from tests.tiny_project import make_project

TASKS = ("sequence_classification", "token_classification", "question_answering", "multiple_choice", "masked_lm")
OTHERS = (("gpt2", "causal_lm"), ("t5", "seq2seq_lm"), ("xlm", "masked_lm"), ("llama", "causal_lm"))


@pytest.mark.parametrize(("family", "task"), [*(("bert", task) for task in TASKS), *OTHERS])
def test_class_and_weights_are_those_that_were_saved(tmp_path, family, task):
    saved = families.build(family, task=task)
    saved.save_pretrained(tmp_path)
    loaded = load_saved_model(str(tmp_path))
    assert type(loaded) is type(saved)
    assert not loaded.training
    weights = saved.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())


def test_half_precision_is_measured_in_float32(tmp_path):
    families.build("bert").to(torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in load_saved_model(str(tmp_path)).parameters()} == {torch.float32}
    half = load_saved_model(str(tmp_path), dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def save_adapter(folder, num_labels=3, *, task_type="SEQ_CLS"):
    """A LoRA adapter with its head on the encoder in ``folder/model``, all its weights moved; and the model itself."""
    base = AutoModelForSequenceClassification.from_pretrained(
        folder / "model", id2label=dict(enumerate(map(str, range(num_labels))))
    )
    settings = {} if task_type else {"modules_to_save": ["classifier"]}
    model = get_peft_model(base, LoraConfig(task_type=task_type, r=2, target_modules=["query", "value"], **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder / "adapter")
    return model.eval()


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path / "project")


@pytest.mark.parametrize("num_labels", [1, 3, 4])
@pytest.mark.parametrize("task_type", ["SEQ_CLS", None])
def test_adapter_with_its_head_on_its_base(project, num_labels, task_type):
    saved = save_adapter(project, num_labels, task_type=task_type)
    loaded = load_saved_model(str(project / "adapter"))
    assert isinstance(loaded, PeftModel)
    trained = {name: p for name, p in saved.named_parameters() if p.requires_grad}
    found = {name: p for name, p in loaded.named_parameters() if p.requires_grad}
    assert found.keys() == trained.keys()
    assert all(torch.equal(found[name], p) for name, p in trained.items())
    inputs = families.inputs("bert", saved, batch=2)
    inputs = {key: value.clamp(max=9) for key, value in inputs.items() if key != "labels"}
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, saved(**inputs).logits)


def test_series_of_adapters(project):
    save_adapter(project)
    for step in (1, 2):
        shutil.copytree(project / "adapter", project / "out" / f"checkpoint-{step}")
    report = probe_checkpoints(request(project))
    first, second = report.measurements
    assert first.value == second.value
    assert "embeddings" not in first.trainable
    assert probe_checkpoints(request(project, parameters="all")).measurements[0].value > first.value


def test_adapter_without_a_weight(project):
    save_adapter(project)
    weights = project / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    lost = next(name for name in tensors if "lora_B" in name)
    save_file({name: value for name, value in tensors.items() if name != lost}, weights)
    with pytest.raises(UnsupportedModelError, match=rf"lacks weights.*without {lost}"):
        load_saved_model(str(project / "adapter"))
    save_file({name: value for name, value in tensors.items() if "classifier" not in name}, weights)
    with pytest.raises(UnsupportedModelError, match=r"without classifier\.bias, classifier\.weight"):
        load_saved_model(str(project / "adapter"))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (None, "does not say which model"),
        ("./gone", r"base model of the adapter .*adapter cannot be loaded.*Got: ./gone"),
    ],
)
def test_adapter_without_its_base(project, base, message):
    save_adapter(project)
    path = project / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": base}))
    with pytest.raises(UnsupportedModelError, match=message):
        load_saved_model(str(project / "adapter"))


def test_broken_base_is_named_rather_than_the_adapter(project):
    save_adapter(project)
    (project / "model" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(
        UnsupportedModelError, match=r"base model of the adapter .*Got: .*project/model\. .*missing or br"
    ):
        load_saved_model(str(project / "adapter"))


def test_revision_of_the_base_is_that_of_the_adapter(project, monkeypatch):
    save_adapter(project)
    path = project / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "revision": "v1"}))
    asked = []
    for owner in (AutoConfig, BertForSequenceClassification):
        original = owner.from_pretrained

        def noting(name, *arguments, original=original, **settings):
            asked.append((name, settings.get("revision")))
            return original(name, *arguments, **settings)

        monkeypatch.setattr(owner, "from_pretrained", noting)
    blueprint = read_blueprint(str(project / "adapter"), revision="of-the-adapter")
    blueprint.load()
    assert asked == [(str(project / "model"), "v1")] * 2
    assert (blueprint.base, blueprint.base_revision, blueprint.revision) == (
        str(project / "model"), "v1", "of-the-adapter",
    )  # fmt: skip


def test_base_of_an_adapter_is_recorded_and_recognized(project, tmp_path):
    save_adapter(project)
    asked = request(project, "adapter", tokenizer=str(project / "model"))
    (model,) = probe_checkpoints(asked, output=tmp_path / "probe").models
    assert model.base == str(project / "model")
    assert model.base_sha256 == weights_sha256(str(project / "model"))
    assert model.weights_sha256 not in (None, model.base_sha256)
    assert json.loads((tmp_path / "probe" / "probe.json").read_text())["models"][0]["base"] == model.base
    weights = project / "model" / "model.safetensors"
    save_file({name: value + 1 for name, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    with pytest.raises(ResumeError, match="adapter has other weights than when it was measured"):
        probe_checkpoints(asked, output=tmp_path / "probe")


@pytest.mark.parametrize(
    ("architectures", "message"),
    [
        (["BertModel"], "has no head.*--allow-new-head"),
        (["BertForSomething"], "not one of transformers"),
        (["BertForNextSentencePrediction"], "log-likelihood of this model is not known"),
        (None, "does not say which class"),
    ],
)
def test_heads_that_are_not_known(tmp_path, architectures, message):
    families.build("bert").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": architectures}))
    with pytest.raises(UnsupportedModelError, match=message):
        read_blueprint(str(tmp_path))


def test_new_head_is_asked_for(project):
    with pytest.raises(UnsupportedModelError, match="has no head"):
        probe_checkpoints(request(project, "model"))
    first, again, other = (
        probe_checkpoints(request(project, "model", allow_new_head=True, seed=seed)).measurements[0].value
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_new_head_of_a_model_that_has_one_changes_nothing(project):
    save_classifier(project / "model", project / "classifier")
    values = [
        probe_checkpoints(request(project, "classifier", allow_new_head=new)).measurements[0].value
        for new in (False, True)
    ]
    assert values[0] == values[1]

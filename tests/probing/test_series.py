"""Series of checkpoints: the numbers of the callback, what breaks, what is gone on from."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import default_data_collator

from hf_early_ood import names
from hf_early_ood.callbacks.dynamics import EarlyDynamicsCallback
from hf_early_ood.dynamics import read_dynamics
from hf_early_ood.errors import ConfigurationError, ResumeError, UnsupportedModelError
from hf_early_ood.probes.batches import ProbeSet
from hf_early_ood.probes.measures import MEASURES
from hf_early_ood.probing import ProbeRequest, check_probe, probe_checkpoints, probe_model
from hf_early_ood.sources import SplitSpec
from tests import families
from tests.probing.saved import CHEAP, SMALL, make_checkpoints, request, save_classifier
from tests.training import Rows, make_trainer

BOTH = ("fisher_trace", "average_sharpness")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return make_checkpoints(tmp_path_factory.mktemp("project"))


@pytest.fixture
def project(checkpoints, tmp_path):
    return shutil.copytree(checkpoints, tmp_path / "project")


def values(report):
    return {(item.step, item.measure): item.value for item in report.measurements}


def test_numbers_are_those_of_the_callback(tmp_path):
    """Every measure, of checkpoints that a training left, on the examples that it was measured on."""
    callback = EarlyDynamicsCallback(
        list(MEASURES), every=2, settings=CHEAP, probe_dataset=Rows(20), probe_size=8, probe_batch_size=4, probe_seed=3
    )
    make_trainer(tmp_path / "run", [callback], max_steps=4, save_strategy="steps", save_steps=2).train()
    rows = Rows(20)
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({key: value.tolist() for key, value in rows[i].items()}) + "\n" for i in range(len(rows)))
    )
    report = probe_checkpoints(
        ProbeRequest(
            str(tmp_path / "run"), SplitSpec(str(tmp_path / "rows.jsonl")), tuple(MEASURES), CHEAP, seed=3, **SMALL
        ),
        output=tmp_path / "out",
    )
    measured = read_dynamics(tmp_path / "run" / names.DYNAMICS_FILE)
    probed = read_dynamics(tmp_path / "out" / names.DYNAMICS_FILE)
    assert not report.failures
    assert len(probed.measurements) == 2 * len(MEASURES)
    expected = {(item.step, item.measure): item for item in measured.measurements if item.step > 0}
    for item in probed.measurements:
        before = expected.pop((item.step, item.measure))
        assert item.value == before.value
        assert item.per_group == before.per_group
        assert item.standard_error == before.standard_error
        assert item.trainable == before.trainable
    assert not expected
    assert report.measurements == probed.measurements


def test_lines_have_the_keys_of_the_callback(tmp_path, project):
    callback = EarlyDynamicsCallback(every=2, probe_size=8, probe_batch_size=4)
    make_trainer(tmp_path / "run", [callback], max_steps=2).train()
    probe_checkpoints(request(project), output=tmp_path / "out")
    ours, theirs = (
        json.loads((folder / names.DYNAMICS_FILE).read_text().splitlines()[0])
        for folder in (tmp_path / "out", tmp_path / "run")
    )
    # How much of the time of training it took has no meaning here.
    assert list(ours) == [key for key in theirs if key != "share"]


def test_series_is_in_numeric_order_on_the_same_examples(project):
    report = probe_checkpoints(request(project, measures=BOTH, settings=CHEAP_SHARPNESS))
    assert [model.name for model in report.models] == ["checkpoint-2", "checkpoint-4", "checkpoint-10"]
    assert [item.step for item in report.measurements] == [2, 2, 4, 4, 10, 10]
    assert len(set(values(report).values())) == 6
    alone = probe_checkpoints(request(project, "out/checkpoint-4", measures=BOTH, settings=CHEAP_SHARPNESS))
    assert values(alone) == {key: value for key, value in values(report).items() if key[0] == 4}
    assert alone.probe_set == report.probe_set


CHEAP_SHARPNESS = {"average_sharpness": {"num_draws": 2}}


def test_model_as_it_is_leaves_no_trace(tiny_bert):
    tiny_bert.train()
    tiny_bert.classifier.weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in tiny_bert.named_parameters()}
    probe_set = ProbeSet.from_dataset(Rows(), default_data_collator, size=8, batch_size=4)
    trainable, everything = (
        probe_model(tiny_bert, probe_set, BOTH, settings=CHEAP_SHARPNESS, parameters=parameters)
        for parameters in ("trainable", "all")
    )
    assert all(torch.equal(before[name], p) for name, p in tiny_bert.named_parameters())
    assert [n for n, p in tiny_bert.named_parameters() if not p.requires_grad] == ["classifier.weight"]
    assert tiny_bert.training
    assert trainable[0]["value"] < everything[0]["value"]
    assert trainable[1]["value"] != everything[1]["value"]
    assert sum(everything[0]["per_group"].values()) == pytest.approx(everything[0]["value"])


def test_all_parameters_of_an_adapter_model():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        families.build("bert"), peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    )
    probe_set = ProbeSet.from_dataset(Rows(), default_data_collator, size=8, batch_size=4)
    (adapter,) = probe_model(model, probe_set)
    (everything,) = probe_model(model, probe_set, parameters="all")
    assert "embeddings" not in adapter["per_group"]
    assert everything["per_group"]["embeddings"] > 0
    assert adapter["value"] < everything["value"]


# What breaks


def spoil(folder, how):
    weights = folder / "model.safetensors"
    if how == "cut off":
        weights.write_bytes(weights.read_bytes()[:500])
    elif how == "no weights":
        weights.unlink()
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "half a config":
        (folder / "config.json").write_text('{"architectures": ["Bert')
    elif how == "no head":
        tensors = {key: value for key, value in load_file(weights).items() if "classifier" not in key}
        save_file(tensors, weights, metadata={"format": "pt"})
    elif how == "NaN":
        tensors = load_file(weights)
        tensors["classifier.weight"].fill_(float("nan"))
        save_file(tensors, weights, metadata={"format": "pt"})


BREAKS = {
    "cut off": "cannot be loaded",
    "no weights": "cannot be loaded",
    "no config": "cannot be loaded",
    "half a config": "cannot be loaded",
    "no head": "classifier.bias, classifier.weight",
    "NaN": "fisher_trace: The predictions for probe batch 0 are not finite",
}


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("step", [2, 4])
def test_broken_checkpoint_is_named_and_the_others_are_measured(project, tmp_path, how, step):
    whole = values(probe_checkpoints(request(project)))
    broken = project / "out" / f"checkpoint-{step}"
    kept = shutil.copytree(broken, tmp_path / "kept")
    spoil(broken, how)
    report = probe_checkpoints(request(project), output=tmp_path / "series")
    assert list(report.failures) == [broken.name]
    assert BREAKS[how] in report.failures[broken.name]
    assert {key: v for key, v in values(report).items() if v is not None} == {
        key: v for key, v in whole.items() if key[0] != step
    }
    assert json.loads((tmp_path / "series" / names.PROBE_FILE).read_text())["models"][0]["step"] == 2
    # Put right, only it is measured.
    shutil.rmtree(broken)
    shutil.copytree(kept, broken)
    again = probe_checkpoints(request(project), output=tmp_path / "series")
    assert not again.failures
    assert values(again) == whole
    assert [item.step for item in read_dynamics(tmp_path / "series" / names.DYNAMICS_FILE).measurements] == [2, 4, 10]


def test_checkpoint_of_another_model_is_named(project):
    save_classifier(project / "model", project / "out" / "checkpoint-12", label_names=["good", "bad"])
    report = probe_checkpoints(request(project))
    assert list(report.failures) == ["checkpoint-12"]
    assert "another one than the first" in report.failures["checkpoint-12"]


def test_single_broken_model_is_an_error(project):
    spoil(project / "out" / "checkpoint-4", "no head")
    with pytest.raises(UnsupportedModelError, match=r"random numbers.*without classifier\.bias, classifier\.weight"):
        probe_checkpoints(request(project, "out/checkpoint-4"))


def test_nothing_can_be_read(project):
    for step in (2, 4, 10):
        spoil(project / "out" / f"checkpoint-{step}", "no config")
    with pytest.raises(UnsupportedModelError, match=r"cannot be loaded.*checkpoint-2"):
        probe_checkpoints(request(project))


# Going on


def test_only_what_is_missing_is_measured(project, tmp_path, monkeypatch):
    from hf_early_ood.probing import series

    shutil.move(project / "out" / "checkpoint-4", tmp_path / "later")
    probe_checkpoints(request(project), output=tmp_path / "series")
    shutil.move(tmp_path / "later", project / "out" / "checkpoint-4")
    shutil.rmtree(project / "out" / "checkpoint-2")  # rotated away by the Trainer: its measurement stays
    measured = []
    original = series.measurements
    monkeypatch.setattr(series, "measurements", lambda *a: measured.append(a[-1]) or original(*a))
    report = probe_checkpoints(request(project), output=tmp_path / "series")
    assert measured == [4]
    assert [item.step for item in report.measurements] == [2, 4, 10]
    assert [model.step for model in report.models] == [2, 4, 10]


def test_lines_of_a_training_in_the_same_file_are_left_alone(project, tmp_path):
    request = ProbeRequest(str(project / "out" / "checkpoint-4"), SplitSpec(str(project / "train.jsonl")), **SMALL)
    first = probe_checkpoints(request, output=str(tmp_path / "probed"))
    file = tmp_path / "probed" / names.DYNAMICS_FILE
    (line,) = file.read_text().splitlines()
    stage = {"event": "stage", "stage": 0, "released": ["head"], "step": 0, "trainable_parameters": 1}
    others = [{**stage, "source": "GradualUnfreezingCallback"}, {**json.loads(line), "value": 7.0, "source": "another"}]
    file.write_text("".join(text + "\n" for text in [*map(json.dumps, others), line]))
    again = probe_checkpoints(request, output=tmp_path / "probed")
    assert values(again) == values(first)
    assert "GradualUnfreezingCallback" in file.read_text()


def test_killed_process_is_gone_on_from(project, tmp_path, monkeypatch):
    from hf_early_ood.callbacks import measuring

    whole = values(probe_checkpoints(request(project, measures=BOTH, settings=CHEAP_SHARPNESS)))
    original, count = measuring.measure, []

    def dies(*arguments, **settings):
        count.append(1)
        if len(count) == 4:
            raise KeyboardInterrupt
        return original(*arguments, **settings)

    monkeypatch.setattr(measuring, "measure", dies)
    asked = request(project, measures=BOTH, settings=CHEAP_SHARPNESS)
    with pytest.raises(KeyboardInterrupt):
        probe_checkpoints(asked, output=tmp_path / "series")
    with (tmp_path / "series" / names.DYNAMICS_FILE).open("a") as file:
        file.write('{"step": 4, "measu')
    assert values(probe_checkpoints(asked, output=tmp_path / "series")) == whole
    assert len(count) == 4 + 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "differs in seed"),
        ({"measures": BOTH}, "differs in measures"),
        ({"settings": {"fisher_trace": {"labels": "argmax"}}}, r"differs in settings\.fisher_trace"),
    ],
)
def test_folder_with_other_settings_is_refused(project, tmp_path, change, message):
    probe_checkpoints(request(project), output=tmp_path / "series")
    with pytest.raises(ResumeError, match=message):
        probe_checkpoints(request(project, **change), output=tmp_path / "series")


def test_folder_with_other_weights_or_data_is_refused(project, tmp_path):
    probe_checkpoints(request(project), output=tmp_path / "series")
    save_classifier(project / "model", project / "out" / "checkpoint-4", seed=9)
    with pytest.raises(ResumeError, match="checkpoint-4 has other weights than when it was measured"):
        probe_checkpoints(request(project), output=tmp_path / "series")
    (project / "train.jsonl").write_text((project / "train.jsonl").read_text().replace("very", "quite"))
    with pytest.raises(ResumeError, match="The data has changed"):
        probe_checkpoints(request(project), output=tmp_path / "series")


def test_output_folder_of_a_run_is_refused(project):
    with pytest.raises(ResumeError, match="holds no measurement of saved models"):
        probe_checkpoints(request(project), output=project / "out")
    assert not (project / "out" / names.PROBE_FILE).exists()


def test_folder_in_which_nothing_was_measured_is_free(project, tmp_path):
    spoil(project / "out" / "checkpoint-4", "no head")
    with pytest.raises(UnsupportedModelError, match="lacks weights"):
        probe_checkpoints(request(project, "out/checkpoint-4"), output=tmp_path / "one")
    report = probe_checkpoints(request(project, "out/checkpoint-2"), output=tmp_path / "one")
    assert [model.step for model in report.models] == [2]


# Before measuring


def test_check_says_what_would_be_measured(project, tmp_path):
    spoil(project / "out" / "checkpoint-4", "cut off")
    said = check_probe(request(project), output=tmp_path / "series")
    assert "checkpoint-2 (update 2): can be measured" in said
    assert "checkpoint-4 (update 4): cannot be measured" in said
    assert not (tmp_path / "series").exists()


def test_device_that_is_not_there(project, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="PyTorch sees no GPU"):
        probe_checkpoints(request(project), device="cuda")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measures": ("fisher",)}, "Did you mean 'fisher_trace'"),
        ({"measures": ()}, "nothing to measure"),
        ({"measures": ("fisher_trace",) * 2}, "named twice"),
        ({"settings": {"fisher_trace": {"lables": "x"}}}, "Did you mean 'labels'"),
        ({"settings": {"fisher_trace": {"num_draws": 2.5}}}, "num_draws of fisher_trace.*a whole number"),
        ({"settings": {"fisher_trace": {"parameters": "all"}}}, "--parameters"),
        ({"settings": {"average_sharpness": {"rho": 1}}}, "not taken"),
        ({"parameters": "some"}, "Unknown parameters"),
        ({"dtype": "int8"}, "Unknown dtype"),
        ({"size": 0}, "size is not usable"),
        ({"max_length": 0}, "max_length is not usable"),
        ({"seed": -1}, "seed is not usable"),
    ],
)
def test_unusable_requests(tmp_path, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        request(tmp_path, **changes)


@pytest.mark.parametrize("value", [1, 0.5])
def test_whole_numbers_are_numbers(tmp_path, value):
    asked = request(tmp_path, measures=("average_sharpness",), settings={"average_sharpness": {"rho": value}})
    assert asked.settings["average_sharpness"]["rho"] == value

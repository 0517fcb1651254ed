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
from hf_early_ood.probes.measures import MEASURES, reads_examples
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


OF_EXAMPLES = tuple(name for name in MEASURES if reads_examples(name))


def values(report):
    return {(item.step, item.measure): item.value for item in report.measurements}


def test_numbers_are_those_of_the_callback(tmp_path):
    """Every measure, of checkpoints that a training left, on the examples that it was measured on."""
    callback = EarlyDynamicsCallback(
        list(OF_EXAMPLES),
        every=2,
        settings=CHEAP,
        probe_dataset=Rows(20),
        probe_size=8,
        probe_batch_size=4,
        probe_seed=3,
    )
    make_trainer(tmp_path / "run", [callback], max_steps=4, save_strategy="steps", save_steps=2).train()
    rows = Rows(20)
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({key: value.tolist() for key, value in rows[i].items()}) + "\n" for i in range(len(rows)))
    )
    report = probe_checkpoints(
        ProbeRequest(
            str(tmp_path / "run"), SplitSpec(str(tmp_path / "rows.jsonl")), OF_EXAMPLES, CHEAP, seed=3, **SMALL
        ),
        output=tmp_path / "out",
    )
    measured = read_dynamics(tmp_path / "run" / names.DYNAMICS_FILE)
    probed = read_dynamics(tmp_path / "out" / names.DYNAMICS_FILE)
    assert not report.failures
    assert len(probed.measurements) == 2 * len(OF_EXAMPLES)
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
        ({"settings": {"fisher_trace": {"labels": "argmax"}}}, r"differs in settings\.fisher_trace\.labels"),
    ],
)
def test_folder_with_other_settings_is_refused(project, tmp_path, change, message):
    probe_checkpoints(request(project), output=tmp_path / "series")
    with pytest.raises(ResumeError, match=message):
        probe_checkpoints(request(project, **change), output=tmp_path / "series")


def test_further_measures_are_added(project, tmp_path, monkeypatch):
    """The texts get labels for the second one, which changes the tensors and not the examples."""
    from hf_early_ood.callbacks import measuring

    first = probe_checkpoints(request(project), output=tmp_path / "series")
    taken, original = [], measuring.measure
    monkeypatch.setattr(measuring, "measure", lambda *a, **k: taken.append(a[0]) or original(*a, **k))
    only = {"measures": ("average_sharpness",), "settings": CHEAP_SHARPNESS}
    both = probe_checkpoints(request(project, **only), output=tmp_path / "series")
    assert taken == ["average_sharpness"] * 3
    assert both.request.measures == BOTH
    assert values(both) == values(probe_checkpoints(request(project, measures=BOTH, settings=CHEAP_SHARPNESS)))
    assert {key: v for key, v in values(both).items() if key[1] == "fisher_trace"} == values(first)
    record = json.loads((tmp_path / "series" / names.PROBE_FILE).read_text())
    assert record["request"]["measures"] == list(BOTH)
    assert record["request"]["settings"] == CHEAP_SHARPNESS
    del taken[:]
    assert values(probe_checkpoints(request(project), output=tmp_path / "series")) == values(both)
    assert taken == []
    with pytest.raises(ResumeError, match=r"differs in settings\.average_sharpness\.num_draws"):
        probe_checkpoints(
            request(project, measures=BOTH, settings={"average_sharpness": {"num_draws": 4}}),
            output=tmp_path / "series",
        )


def test_further_measure_of_a_new_checkpoint_and_an_old_one(project, tmp_path):
    shutil.move(project / "out" / "checkpoint-4", tmp_path / "later")
    probe_checkpoints(request(project), output=tmp_path / "series")
    shutil.move(tmp_path / "later", project / "out" / "checkpoint-4")
    plan = check_probe(request(project, measures=BOTH, settings=CHEAP_SHARPNESS), output=tmp_path / "series")
    assert [item.missing for item in plan.models] == [("average_sharpness",), BOTH, ("average_sharpness",)]


def test_measure_without_a_value_in_the_folder_is_not_held(project, tmp_path):
    """What could not be taken is neither wanted again nor in the way of other settings."""
    for step in (2, 4, 10):
        spoil(project / "out" / f"checkpoint-{step}", "NaN")
    save_classifier(project / "model", project / "out" / "checkpoint-20")
    failing = {"measures": BOTH, "settings": {"average_sharpness": {"num_draws": 2, "rho": 1e30}}}
    report = probe_checkpoints(request(project, **failing), output=tmp_path / "series")
    assert set(report.failures) == {"checkpoint-2", "checkpoint-4", "checkpoint-10", "checkpoint-20"}
    again = probe_checkpoints(request(project, measures=BOTH, settings=CHEAP_SHARPNESS), output=tmp_path / "series")
    assert again.request.settings == CHEAP_SHARPNESS
    assert [key for key, value in values(again).items() if value is not None] == [
        (20, "fisher_trace"), (20, "average_sharpness"),
    ]  # fmt: skip


def test_output_that_cannot_be_written(project, tmp_path, monkeypatch):
    from hf_early_ood.probing import series

    monkeypatch.setattr(series, "measurements", lambda *a: pytest.fail("measured"))
    (tmp_path / "file").write_text("mine")
    for there in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        for act in (probe_checkpoints, check_probe):
            with pytest.raises(ConfigurationError, match="output folder cannot be written"):
                act(request(project), output=there)
    assert (tmp_path / "file").read_text() == "mine"

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_early_ood.probing.output.write_json", full)
    with pytest.raises(ConfigurationError, match=r"cannot be written.*No space left"):
        probe_checkpoints(request(project), output=tmp_path / "full")


def test_folder_with_other_weights_or_data_is_refused(project, tmp_path):
    probe_checkpoints(request(project), output=tmp_path / "series")
    save_classifier(project / "model", project / "out" / "checkpoint-4", seed=9)
    with pytest.raises(ResumeError, match="checkpoint-4 has other weights than when it was measured"):
        probe_checkpoints(request(project), output=tmp_path / "series")
    (project / "train.jsonl").write_text((project / "train.jsonl").read_text().replace("very", "quite"))
    with pytest.raises(ResumeError, match="The data has changed"):
        probe_checkpoints(request(project), output=tmp_path / "series")


@pytest.mark.parametrize(
    "spoiled",
    ["{", "[]", '{"request": 3}', '{"request": {}, "models": [{}]}', {"models": [{"stage": 1}]}, {"started": 3}],
)
def test_record_that_cannot_be_read_is_refused(project, tmp_path, spoiled):
    probe_checkpoints(request(project), output=tmp_path / "series")
    path = tmp_path / "series" / names.PROBE_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **spoiled}) if isinstance(spoiled, dict) else spoiled)
    with pytest.raises(ResumeError, match="is not the record of a measurement"):
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
    plan = check_probe(request(project), output=tmp_path / "series")
    assert "checkpoint-2 (update 2): can be measured" in plan.text()
    assert "checkpoint-4 (update 4): cannot be measured" in plan.text()
    assert list(plan.failures) == ["checkpoint-4"]
    assert not (tmp_path / "series").exists()


def test_check_counts_what_was_measured_before(project, tmp_path):
    probe_checkpoints(request(project), output=tmp_path / "series")
    spoil(project / "out" / "checkpoint-4", "no config")  # nothing is to be measured of it
    plan = check_probe(request(project), output=tmp_path / "series")
    assert "checkpoint-4 (update 4): 1 of 1 measured before" in plan.text()
    assert not plan.failures


def test_update_that_is_not_known(project):
    model = shutil.copytree(project / "out" / "checkpoint-4", project / "somewhere")
    assert "somewhere (update not known): can be measured" in check_probe(request(project, model)).text()
    (described,) = probe_checkpoints(request(project, model)).models
    assert (described.step, described.step_known) == (0, False)
    fresh = check_probe(request(project, "model", allow_new_head=True))
    assert "model (update 0): can be measured" in fresh.text()
    (known,) = probe_checkpoints(request(project, "out/checkpoint-4")).models
    assert known.step_known


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
        ({"settings": {"fisher_trace": {"num_draws": 2.5}}}, "fisher_trace: num_draws is not usable.*a whole number"),
        ({"settings": {"fisher_trace": {"parameters": "all"}}}, "--parameters"),
        ({"settings": {"average_sharpness": {"rho": 1}}}, "not taken"),
        ({"parameters": "some"}, "Unknown parameters"),
        ({"dtype": "int8"}, "Unknown dtype"),
        ({"size": 0}, "size is not usable"),
        ({"max_length": 0}, "max_length is not usable"),
        ({"seed": -1}, "seed is not usable"),
        ({"size": "16"}, "size is not usable. Got: '16'"),
        ({"batch_size": 0}, "batch_size is not usable"),
        ({"batch_size": "4"}, "batch_size is not usable"),
        ({"seed": 1.5}, "seed is not usable"),
        ({"text": 3}, "text is not usable"),
        ({"label_names": "good"}, "label_names is not usable"),
        ({"label_names": (0, 1)}, "label_names is not usable. Got: 0"),
        ({"allow_new_head": "yes"}, "allow_new_head is not usable"),
        ({"settings": {"fisher_trace": {"labels": "sampld"}}}, "fisher_trace: Unknown labels"),
        ({"measures": ("average_sharpness",), "settings": {"average_sharpness": {"rho": -1}}}, "rho is not usable"),
        (
            {"measures": ("worst_case_sharpness",), "settings": {"worst_case_sharpness": {"steps": "5"}}},
            "worst_case_sharpness: steps is not usable. Got: '5'",
        ),
    ],
)
def test_unusable_requests(tmp_path, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        request(tmp_path, **changes)


@pytest.mark.parametrize("value", [1, 0.5])
def test_whole_numbers_are_numbers(tmp_path, value):
    asked = request(tmp_path, measures=("average_sharpness",), settings={"average_sharpness": {"rho": value}})
    assert asked.settings["average_sharpness"]["rho"] == value


def test_paths_and_lists_are_taken(tmp_path):
    data = SplitSpec(str(tmp_path / "train.jsonl"))
    asked = ProbeRequest(
        tmp_path / "out", data, ["fisher_trace"], label_names=["a", "b"], tokenizer=tmp_path / "tokenizer"
    )
    assert (asked.model, asked.tokenizer) == (str(tmp_path / "out"), str(tmp_path / "tokenizer"))
    assert (asked.measures, asked.label_names) == (("fisher_trace",), ("a", "b"))
    assert ProbeRequest("out", data, "fisher_trace").measures == ("fisher_trace",)
    for wrong in ({"model": 3}, {"data": str(tmp_path / "train.jsonl")}):
        with pytest.raises(ConfigurationError, match=f"{next(iter(wrong))} is not usable"):
            ProbeRequest(**{"model": "out", "data": data, **wrong})


def test_batch_is_as_large_as_the_probe_set_at_most(tmp_path):
    data = SplitSpec("data.jsonl")
    assert [ProbeRequest("out", data, size=size).batch_size for size in (16, 32, 100)] == [16, 32, 32]
    assert ProbeRequest("out", data, size=100, batch_size=50).batch_size == 50


def test_what_a_picture_says(tmp_path):
    (tmp_path / "train.jsonl").write_text("")
    asked = request(tmp_path, measures=BOTH, seed=3)
    assert asked.on_what("fisher_trace") == "8 examples of train.jsonl, seed 3, sampled labels"
    assert asked.on_what("average_sharpness") == "8 examples of train.jsonl, seed 3, the labels of the data"


def test_revision_of_a_local_model_would_have_no_effect(project):
    with pytest.raises(ConfigurationError, match="--revision would have no effect"):
        probe_checkpoints(request(project, revision="main"))

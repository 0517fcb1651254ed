"""Orders that select by measurement (FUN), in a plain Trainer, against a slow twin on a copy of the model."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import TrainerCallback, default_data_collator

from hf_early_ood.callbacks import measuring, selecting
from hf_early_ood.callbacks.selecting import select_largest
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.dynamics import read_dynamics
from hf_early_ood.errors import ConfigurationError, ProbeError, ResumeError
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.probes.batches import ProbeSet
from hf_early_ood.probes.reference import fisher_trace_loop
from hf_early_ood.probes.reference_gradients import fisher_trace_batch_mean_loop, relative_gradient_norm_loop
from hf_early_ood.report.figures import signal_figure
from tests import families
from tests.training import Rows, StopAfter, check_resumed_at_every_update, differences, make_trainer, outcome

PROBE = {"probe_size": 8, "probe_batch_size": 4}
FUN = {"interval": 2, "order": "fisher_trace", **PROBE}
AUTO = {**FUN, "interval": "auto", "probe_every": 1, "window": 1, "tolerance": 1e9, "transient": 1, "max_step": 3}
RELEASES = [2, 4, 6, 8]
TWINS = {
    "fisher_trace": lambda *a, **k: fisher_trace_loop(*a, **k, seed=0).per_group,
    "fisher_trace_batch_mean": lambda *a, **k: fisher_trace_batch_mean_loop(*a, **k)[1],
    "relative_gradient_norm": lambda *a, **k: relative_gradient_norm_loop(*a, **k)[1],
}


class SlowTwin(TrainerCallback):
    """Before every release, the scores of all groups on a copy of the model in which everything trains."""

    def __init__(self, measure, trained=None):
        self.measure, self.trained = TWINS[measure], trained
        self.scores = {}

    def on_step_begin(self, args, state, control, model, **kwargs):
        if state.global_step not in RELEASES:
            return
        twin = copy.deepcopy(model)
        for name, parameter in twin.named_parameters():
            parameter.requires_grad_(self.trained is None or name in self.trained)
        batches = ProbeSet.from_dataset(Rows(), default_data_collator, size=8, batch_size=4, seed=0).batches
        groups = find_layer_groups(twin).trainable()
        self.scores[state.global_step] = self.measure(twin, batches, groups=groups)


def skewed():
    """A model in which neither the top nor the bottom has the largest gradients."""
    model = families.build("bert")
    with torch.no_grad():
        model.bert.encoder.layer[1].attention.output.LayerNorm.weight.mul_(0.05)
        model.bert.encoder.layer[1].output.LayerNorm.weight.mul_(0.05)
    return model


def chosen_in(callback):
    return {r["step"]: r["chosen"] for r in callback.records if "chosen" in r}


def check_against(twin, callback):
    events = [record for record in callback.records if record.get("event") == "stage"]
    frozen = set(find_layer_groups(skewed()).names) - set(events[0]["released"])
    measured = {r["step"]: r for r in callback.records if r.get("measure") == f"selection/{callback.settings['order']}"}
    assert list(measured) == list(twin.scores) == [event["step"] for event in events[1:]]
    for event in events[1:]:
        scores = twin.scores[event["step"]]
        frozen &= set(scores)
        best = max(frozen, key=lambda name: scores[name])
        assert event["released"] == event["chosen"] == [best]
        frozen.remove(best)
        assert measured[event["step"]]["per_group"] == pytest.approx(scores, rel=1e-3)
        assert "head" in measured[event["step"]]["per_group"]  # measured, but out of the running


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    callback, twin = GradualUnfreezingCallback(**FUN), SlowTwin("fisher_trace")
    trainer = make_trainer(folder, [twin, callback], model=skewed())
    trainer.train()
    return callback, twin, outcome(trainer), folder


def test_the_largest_fisher_trace_comes_next(whole):
    callback, twin, _, folder = whole
    check_against(twin, callback)
    order = [name for names in chosen_in(callback).values() for name in names]
    bottom_up = ["embeddings", "block.0", "block.1", "block.2"]
    assert order not in (bottom_up, bottom_up[::-1])
    series = read_dynamics(folder / "dynamics.jsonl")
    assert [item.step for item in series.of("selection/fisher_trace")] == RELEASES
    assert [stage.released for stage in series.stages[1:]] == [(name,) for name in order]
    assert all(item.trainable == find_layer_groups(skewed()).names for item in series.measurements)
    assert callback.probe_seconds > 0


@pytest.mark.parametrize("measure", ["fisher_trace_batch_mean", "relative_gradient_norm"])
def test_other_measures_select_as_their_twins_do(tmp_path, measure):
    callback, twin = GradualUnfreezingCallback(**{**FUN, "order": measure}), SlowTwin(measure)
    make_trainer(tmp_path, [twin, callback], model=skewed()).train()
    check_against(twin, callback)


def test_selection_leaves_no_trace(whole, tmp_path):
    """The training equals, bit for bit, one with the chosen order given as a list."""
    callback, _, end, _ = whole
    order = [name for names in chosen_in(callback).values() for name in names]
    fixed = GradualUnfreezingCallback(interval=2, order=order, self_check=False)
    trainer = make_trainer(tmp_path, [fixed], model=skewed())
    trainer.train()
    assert not differences(end, outcome(trainer))


@pytest.mark.sweep(keep=1)
@pytest.mark.parametrize("settings", [FUN, AUTO], ids=["fixed", "auto"])
def test_resumed_at_every_update(tmp_path, settings):
    """Before, at and after each selection, and before and after a decision."""
    callback = check_resumed_at_every_update(tmp_path, lambda: GradualUnfreezingCallback(**settings), skewed)
    assert len(chosen_in(callback)) == 4


def test_lora(tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], init_lora_weights=False)
    model = peft.get_peft_model(skewed(), config)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    callback, twin = GradualUnfreezingCallback(**FUN), SlowTwin("fisher_trace", trained)
    make_trainer(tmp_path, [twin, callback], model=model).train()
    del twin.scores[8]  # three blocks are released by then
    check_against(twin, callback)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained


def test_what_cannot_be_measured_cannot_be_selected(tmp_path):
    trainer = make_trainer(tmp_path, [GradualUnfreezingCallback(**FUN)])
    with torch.no_grad():
        trainer.model.classifier.bias[0] = float("nan")
    with pytest.raises(ProbeError, match=r"next layer group cannot be selected: there is no fisher_trace.*not finite"):
        trainer.train()
    assert trainer.state.global_step == 2


def test_releases_of_one_update_share_one_measurement(tmp_path, monkeypatch):
    """Four releases within two updates of the first: two of them fall on one."""
    taken = []

    def counting(*args, **kwargs):
        taken.append(args)
        return measuring.measure_in_training(*args, **kwargs)

    monkeypatch.setattr(selecting, "measure_in_training", counting)
    callback = GradualUnfreezingCallback(**FUN, release=2)
    make_trainer(tmp_path, [callback], model=skewed()).train()
    stages = [record for record in callback.records if record.get("event") == "stage"][1:]
    measured = {r["step"]: r["per_group"] for r in callback.records if r.get("measure") == "selection/fisher_trace"}
    assert [event["step"] for event in stages] == [2, 3, 3, 4]
    assert len(taken) == len(measured) == 3
    frozen = ["embeddings", "block.0", "block.1", "block.2"]
    for event in stages:
        best = max(frozen, key=measured[event["step"]].__getitem__)
        assert event["chosen"] == [best]
        frozen.remove(best)


def test_a_candidate_without_a_value_comes_last(caplog):
    units = [("embeddings",), ("block.0", "block.1"), ("block.2",)]
    scores = {"block.0": None, "block.1": 0.0}
    for measure in ("fisher_trace", "relative_gradient_norm"):
        assert select_largest(units, scores, measure) == ("block.0", "block.1")
    assert select_largest([("embeddings",)], scores, "fisher_trace") == ("embeddings",)
    assert not caplog.records
    with caplog.at_level("WARNING", logger="hf_early_ood"):
        assert select_largest([("block.2",), ("embeddings",)], scores, "fisher_trace") == ("block.2",)
    assert "None of block.2, embeddings has a fisher_trace: they are released in this order" in caplog.text


def test_groups_of_zeros_are_released_last(tmp_path):
    model = skewed()
    with torch.no_grad():
        for parameter in find_layer_groups(model)["block.2"].parameters.values():
            parameter.zero_()
    callback = GradualUnfreezingCallback(**{**FUN, "order": "relative_gradient_norm"})
    make_trainer(tmp_path, [callback], model=model).train()
    assert chosen_in(callback)[8] == ["block.2"]


def test_an_interrupted_measurement_leaves_the_flags_of_the_stage(tmp_path, monkeypatch):
    flags = {}

    def breaks(name, model, *args, **kwargs):
        flags["inside"] = all(parameter.requires_grad for parameter in model.parameters())
        raise KeyError("a bug")

    trainer = make_trainer(tmp_path, [GradualUnfreezingCallback(**FUN)])
    monkeypatch.setattr(measuring, "measure", breaks)
    with pytest.raises(KeyError, match="a bug"):
        trainer.train()
    assert flags["inside"]
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trained == set(find_layer_groups(trainer.model)["head"].parameters)


def test_signal_and_selection_of_one_update_are_both_kept(tmp_path):
    """With "auto", the same measure decides and selects, at the same update, of different parameters."""
    callback = GradualUnfreezingCallback(**AUTO)
    trainer = make_trainer(tmp_path, [callback], model=skewed())
    trainer.train()
    step = callback.decision.step
    series = read_dynamics(tmp_path / "dynamics.jsonl")
    signal, selection = series.of("fisher_trace"), series.of("selection/fisher_trace")
    assert [item.step for item in signal] == list(range(step + 1))
    assert [item.step for item in selection] == [step * i for i in range(1, 5)]
    assert signal[-1].trainable == ("head",)
    assert list(signal[-1].per_group) == ["head"]
    assert selection[0].trainable == find_layer_groups(trainer.model).names
    assert selection[0].per_group["head"] == pytest.approx(signal[-1].value, rel=1e-5)
    assert series.decision is not None
    assert series.decision.signal == "fisher_trace"
    signal_figure(signal, series.decision, series.stages, tmp_path / "signal.png")

    order = [name for names in chosen_in(callback).values() for name in names]
    fixed = make_trainer(tmp_path / "fixed", [GradualUnfreezingCallback(interval=step, order=order)], model=skewed())
    fixed.train()
    assert not differences(outcome(trainer), outcome(fixed))


def test_another_probe_set_is_not_resumed_with(tmp_path):
    make_trainer(tmp_path, [GradualUnfreezingCallback(**FUN), StopAfter(3)]).train()
    other = GradualUnfreezingCallback(**FUN, probe_dataset=Rows(length=5))
    with pytest.raises(ResumeError, match="other probe set"):
        make_trainer(tmp_path, [other]).train(resume_from_checkpoint=True)


def test_a_schedule_file_selects(whole, tmp_path):
    path = tmp_path / "schedule.yaml"
    names = find_layer_groups(skewed()).names
    path.write_text(GradualUnfreezingCallback(**FUN).make_schedule(names, 10).to_yaml())
    settings = {"fisher_trace": {"labels": "expected"}}
    callback = GradualUnfreezingCallback(schedule=path, signal="log/loss", signal_settings=settings, **PROBE)
    make_trainer(tmp_path / "run", [callback], model=skewed()).train()
    assert list(chosen_in(callback)) == RELEASES
    measured = [record for record in callback.records if "measure" in record]
    assert {record["details"]["labels"] for record in measured} == {"expected"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"relative_gradient_norm": {"rho": 1}}, "Unknown setting of relative_gradient_norm"),
        ({"average_sharpness": {"rho": 1}}, "Settings for a measure that is not taken"),
    ],
)
def test_settings_of_the_selection_are_checked_at_once(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        GradualUnfreezingCallback(interval=2, order="relative_gradient_norm", signal_settings=settings)


def test_a_selection_measures_with_its_settings_where_it_is_the_signal_as_well():
    with pytest.raises(ConfigurationError, match="fisher_trace: Unknown labels"):
        GradualUnfreezingCallback(order="fisher_trace", signal_settings={"fisher_trace": {"labels": "guessed"}})

"""Any measures in any Trainer: recorded, logged, within their budget, and without a trace."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from hf_early_ood.callbacks.dynamics import EarlyDynamicsCallback
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.dynamics import read_dynamics
from hf_early_ood.errors import ConfigurationError, ProbeError, ResumeError
from hf_early_ood.probes.measures import MEASURES
from tests import families
from tests.training import Rows, StopAfter, differences, make_trainer, outcome

PROBE = {"probe_size": 8, "probe_batch_size": 4}
CHEAP = {
    "average_sharpness": {"num_draws": 2},
    "worst_case_sharpness": {"steps": 2},
    "hessian_trace": {"num_products": 6},
    "gauss_newton_trace": {"num_products": 6},
    "hessian_top_eigenvalue": {"num_products": 4},
    "gradient_subspace_overlap": {"num_products": 4},
}


@pytest.mark.sweep(keep=1)
@pytest.mark.parametrize(
    "arguments",
    [{}, {"gradient_accumulation_steps": 2}, {"activation_checkpointing": True}, {"bf16": True}],
    ids=["plain", "accumulation", "checkpointing", "bf16"],
)
def test_all_measures_leave_no_trace(tmp_path, arguments):
    """Every measure, every update, with dropout, weight decay and clipping."""
    callback = EarlyDynamicsCallback(list(MEASURES), every=1, settings=CHEAP, **PROBE)
    measured = make_trainer(tmp_path / "with", [callback], max_steps=4, **arguments)
    measured.train()
    plain = make_trainer(tmp_path / "without", [], max_steps=4, **arguments)
    plain.train()
    assert not differences(outcome(measured), outcome(plain))
    assert [record["step"] for record in callback.records] == [step for step in range(5) for _ in MEASURES]
    assert all(record["value"] is not None for record in callback.records)


def test_all_measures_leave_no_trace_with_lora(tmp_path):
    peft = pytest.importorskip("peft")

    def lora():
        torch.manual_seed(2)
        config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
        return peft.get_peft_model(families.build("bert"), config)

    callback = EarlyDynamicsCallback(list(MEASURES), every=1, settings=CHEAP, **PROBE)
    measured = make_trainer(tmp_path / "with", [callback], model=lora(), max_steps=4)
    measured.train()
    plain = make_trainer(tmp_path / "without", [], model=lora(), max_steps=4)
    plain.train()
    assert not differences(outcome(measured), outcome(plain))


@pytest.mark.parametrize("first", ["measures", "freezes"])
def test_series_is_written_and_logged_beside_unfreezing(tmp_path, first):
    unfreezing = GradualUnfreezingCallback(interval=2)
    callback = EarlyDynamicsCallback(every=2, until=6, **PROBE)
    trainer = make_trainer(tmp_path, [callback, unfreezing] if first == "measures" else [unfreezing, callback])
    trainer.train()
    series = read_dynamics(tmp_path / "dynamics.jsonl")
    assert [item.step for item in series.of("fisher_trace")] == [0, 2, 4, 6]
    assert [stage.step for stage in series.stages] == [0, 2, 4, 6, 8]
    # What trains in the update before: the callback that measures need not come after the one that freezes.
    assert [list(item.trainable) for item in series.of("fisher_trace")] == [
        ["head"],
        ["head"],
        ["block.2", "head"],
        ["block.1", "block.2", "head"],
    ]
    for item in series.of("fisher_trace"):
        assert sum(item.per_group.values()) == pytest.approx(item.value)
    logged = [entry for entry in trainer.state.log_history if "early_ood/fisher_trace" in entry]
    assert [entry["step"] for entry in logged] == [0, 2, 4, 6]
    assert "early_ood/fisher_trace/head" in logged[0]


def test_until_decision(tmp_path):
    unfreezing = GradualUnfreezingCallback(
        interval="auto", probe_every=1, window=1, tolerance=1e9, transient=2, max_step=5, **PROBE
    )
    callback = EarlyDynamicsCallback(every=1, until="decision", **PROBE)
    make_trainer(tmp_path, [unfreezing, callback]).train()
    assert unfreezing.decision.step == 3
    assert callback.records[-1]["step"] <= 3


@pytest.mark.sweep(keep=1)
@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_resume_neither_loses_nor_repeats_a_line(tmp_path, stop):
    def callbacks():
        return [EarlyDynamicsCallback(every=2, **PROBE), GradualUnfreezingCallback(interval=2)]

    whole = make_trainer(tmp_path / "whole", callbacks())
    whole.train()
    make_trainer(tmp_path / "cut", [*callbacks(), StopAfter(stop)]).train()
    with (tmp_path / "cut" / "dynamics.jsonl").open("a") as file:
        file.write('{"step": 99, "measure": "fisher_trace", "source": "EarlyDynamicsCallback"}\n{"step": 1')
    resumed = make_trainer(tmp_path / "cut", callbacks())
    resumed.train(resume_from_checkpoint=True)
    assert not differences(outcome(whole), outcome(resumed))

    def lines(folder):
        rows = [json.loads(line) for line in (folder / "dynamics.jsonl").read_text().splitlines()]
        kept = [{k: v for k, v in row.items() if k not in ("seconds", "share")} for row in rows]
        return sorted(kept, key=lambda row: (row["step"], row["source"], row.get("event", "")))

    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def test_budget_spaces_measurements(tmp_path, monkeypatch):
    """With a clock of the test's own: an update takes 1 second, a measurement 0.5."""
    from hf_early_ood.callbacks import dynamics

    class Seconds:
        now = 0.0

        def perf_counter(self):
            return self.now

    clock = Seconds()
    monkeypatch.setattr(dynamics, "time", clock)

    class Update(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            pass

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            clock.now += 1.0

    original = dynamics.measure_in_training
    monkeypatch.setattr(dynamics, "measure_in_training", lambda *a, **k: {**original(*a, **k), "seconds": 0.5})
    callback = EarlyDynamicsCallback(every=1, budget=0.1, **PROBE)
    make_trainer(tmp_path, [callback, Update()], max_steps=20).train()
    # Another half second fits when 0.5 (n + 1) <= 0.1 (t + 0.5 (n + 1)): t >= 4.5 (n + 1).
    assert [record["step"] for record in callback.records] == [0, 9, 14, 18]
    assert all(record["share"] <= 0.1 for record in callback.records[1:])


class Noisy(nn.Module):
    def forward(self, hidden):
        return hidden + torch.randn_like(hidden)


def test_model_that_is_random_in_eval_mode_is_refused(tmp_path):
    model = families.build("bert")
    model.dropout = Noisy()
    trainer = make_trainer(tmp_path, [EarlyDynamicsCallback(**PROBE)], model=model)
    with pytest.raises(ProbeError, match="differently when asked twice"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_checkpoint_of_other_examples_is_refused(tmp_path):
    make_trainer(tmp_path, [EarlyDynamicsCallback(**PROBE), StopAfter(2)]).train()
    other = EarlyDynamicsCallback(**PROBE, probe_dataset=Rows(length=5))
    with pytest.raises(ResumeError, match="other probe set"):
        make_trainer(tmp_path, [other]).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"measures": []}, "nothing to measure"),
        ({"measures": ["fischer_trace"]}, "Did you mean 'fisher_trace'"),
        ({"settings": {"hessian_trace": {}}}, "measure that is not taken"),
        ({"settings": {"fisher_trace": {"label": "sampled"}}}, "Did you mean 'labels'"),
        ({"every": 0}, "every is not usable"),
        ({"until": "later"}, "until is not usable"),
        ({"budget": 5}, "budget is not usable"),
        ({"probe_size": 8}, "probe set is smaller than a batch"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        EarlyDynamicsCallback(**settings)

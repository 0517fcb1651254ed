"""`EarlyDynamicsCallback` and its series: what is refused, and when."""

from __future__ import annotations

import json
import math

import pytest

from hf_early_ood.callbacks.dynamics import EarlyDynamicsCallback
from hf_early_ood.callbacks.dynamics_log import DynamicsLog
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.errors import ConfigurationError, DataError, ResumeError
from tests import families
from tests.training import StopAfter, make_trainer

PROBE = {"probe_size": 8, "probe_batch_size": 4}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"measures": ["fisher_trace"] * 2}, "named twice"),
        ({"settings": {"fisher_trace": {"labels": "sampld"}}}, "fisher_trace: Unknown labels.*Did you mean 'sampled'"),
        ({"settings": {"fisher_trace": 3}}, "settings of measures are not usable"),
        (
            {"measures": "average_sharpness", "settings": {"average_sharpness": {"rho": math.nan}}},
            "average_sharpness: rho is not usable",
        ),
        ({"probe_seed": -1}, "probe_seed is not usable. Got: -1. Allowed: a whole number, 0 or more"),
        ({"probe_seed": 0.5}, "probe_seed is not usable"),
        ({"until": "descision"}, "until is not usable.*Allowed: an update, 'decision'.*Did you mean 'decision'"),
        ({"until": 0}, "until is not usable"),
    ],
)
def test_settings_are_refused_at_once(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        EarlyDynamicsCallback(**settings)


def test_two_in_one_trainer_are_refused(tmp_path):
    two = [EarlyDynamicsCallback(**PROBE), EarlyDynamicsCallback(["average_sharpness"], **PROBE)]
    with pytest.raises(ConfigurationError, match="two callbacks EarlyDynamicsCallback in one Trainer"):
        make_trainer(tmp_path, two)
    trainer = make_trainer(tmp_path, two[:1])
    trainer.add_callback(two[1])
    with pytest.raises(ConfigurationError, match="two callbacks EarlyDynamicsCallback in one Trainer"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_second_one_is_refused_when_a_run_is_resumed(tmp_path):
    make_trainer(tmp_path, [EarlyDynamicsCallback(every=2, **PROBE), StopAfter(2)]).train()
    trainer = make_trainer(tmp_path, [EarlyDynamicsCallback(every=2, **PROBE)])
    trainer.add_callback(EarlyDynamicsCallback(every=2, **PROBE))
    with pytest.raises(ConfigurationError, match="two callbacks EarlyDynamicsCallback"):
        trainer.train(resume_from_checkpoint=True)


def test_one_is_taken_again_by_the_next_training(tmp_path):
    callback = EarlyDynamicsCallback(every=2, **PROBE)
    trainer = make_trainer(tmp_path, [callback, GradualUnfreezingCallback(interval=1)], max_steps=2)
    for _ in range(2):
        trainer.train()
        assert [record["step"] for record in callback.records] == [0, 2]


class Unlabeled:
    """Examples of token classification without any label."""

    def __init__(self, model):
        batch = families.inputs("bert", model, batch=16)
        batch["labels"].fill_(-100)
        self.rows = [{key: value[i] for key, value in batch.items()} for i in range(16)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def test_examples_for_which_nothing_is_predicted(tmp_path):
    model = families.build("bert", task="token_classification")
    callback = EarlyDynamicsCallback(probe_dataset=Unlabeled(model), **PROBE)
    trainer = make_trainer(tmp_path, [callback], model=model)
    with pytest.raises(DataError, match="Nothing is predicted for any example"):
        trainer.train()


def test_log_keeps_lines_of_others_and_half_a_line_is_none(tmp_path):
    path = tmp_path / "dynamics.jsonl"
    path.write_text('{"step": 4, "source": "other"}\n{"step": 1, "source": "us", "old": 1}\n{"step": 5, "sou')
    log = DynamicsLog(path, "us", writers=["us", "other"], step=4)
    log.replace([{"step": 2}])
    log.append({"step": 6})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 2, "source": "us"}, {"step": 4, "source": "other"}, {"step": 6, "source": "us"},
    ]  # fmt: skip


def test_log_drops_what_is_not_of_this_training(tmp_path):
    path = tmp_path / "dynamics.jsonl"
    lines = [{"step": 4, "source": "other"}, {"step": 5, "source": "other"}, {"step": 1, "source": "gone"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    DynamicsLog(path, "us", writers=["us", "other"], step=4).replace([{"step": 2}])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 2, "source": "us"}, lines[0]]


def sources(folder):
    lines = [json.loads(line) for line in (folder / "dynamics.jsonl").read_text().splitlines()]
    return {line["source"] for line in lines}, max(line["step"] for line in lines)


def test_another_training_in_the_folder_leaves_no_line_of_writers_that_it_lacks(tmp_path):
    both = [EarlyDynamicsCallback(every=1, **PROBE), GradualUnfreezingCallback(2)]
    make_trainer(tmp_path, [*both, StopAfter(4)], max_steps=8).train()
    assert sources(tmp_path) == ({"EarlyDynamicsCallback", "GradualUnfreezingCallback"}, 4)
    # Resumed without measuring: its lines of updates that are kept stay.
    make_trainer(tmp_path, [GradualUnfreezingCallback(2)], max_steps=8).train(resume_from_checkpoint=True)
    assert sources(tmp_path) == ({"EarlyDynamicsCallback", "GradualUnfreezingCallback"}, 6)
    make_trainer(tmp_path, [GradualUnfreezingCallback(2)], max_steps=4).train()
    assert sources(tmp_path) == ({"GradualUnfreezingCallback"}, 2)


@pytest.mark.parametrize("line", ["nonsense", "3", '{"measure": "m"}', '{"step": "2"}'])
def test_log_does_not_drop_what_it_cannot_read(tmp_path, line):
    path = tmp_path / "dynamics.jsonl"
    path.write_text(f'{{"step": 4, "source": "other"}}\n{line}\n')
    with pytest.raises(ResumeError, match=r"Line 2 of .* is not usable"):
        DynamicsLog(path, "us").replace([])
    assert line in path.read_text()

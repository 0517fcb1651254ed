from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_early_ood.callbacks.making import make_callbacks
from hf_early_ood.config import RunConfig, StudyConfig, load_intervention
from hf_early_ood.config.presets import preset_names, preset_text, preset_title
from hf_early_ood.errors import ConfigurationError
from hf_early_ood.trainer import EarlyOODArguments, EarlyOODTrainer
from hf_early_ood.training import make_arguments
from tests.test_config import minimal
from tests.training import make_trainer

# Callbacks of each preset, and what makes it fit into 20 updates of 48 examples.
PROBE = {"size": 8, "batch_size": 4}
PRESETS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "howard2018_ulmfit": (["GradualUnfreezingCallback", "LearningRatesCallback"], {}),
    "jastrzebski2021_fisher_penalty": (["FisherPenaltyCallback"], {}),
    "kumar2022_lpft": (["GradualUnfreezingCallback"], {}),
    "lee2023_surgical": (["GradualUnfreezingCallback"], {"probe": PROBE}),
    "liu2021_autofreeze": (["AutoFreezeCallback"], {}),
    "liu2023_fun": (["GradualUnfreezingCallback"], {"interval": 4, "probe": PROBE}),
    "liu2023_fun_code": (["GradualUnfreezingCallback"], {"interval": 4, "probe": PROBE}),
    "liu2023_gu_code": (["GradualUnfreezingCallback"], {"interval": 4}),
    "liu2024_low_to_high": (["LearningRatesCallback"], {"learning_rates": {"switch_at": 5}}),
    "liu2024_mnli": (
        ["GradualUnfreezingCallback"],
        {"probe": {**PROBE, "every": 1}, "detector": {"max_step": 4}},
    ),
    "liu2024_squad": (
        ["GradualUnfreezingCallback"],
        {"probe": {**PROBE, "every": 1}, "detector": {"max_step": 4}},
    ),
    "pan2024_lisa": (["LISACallback"], {"lisa": {"interval": 4}}),
    "sarfi2023_seal": (["GenerationsCallback"], {}),
    "wortsman2022_wise_ft": ([], {}),
    "zhou2022_llf": (["GenerationsCallback"], {}),
}
IN_TRAINER = [name for name in PRESETS if name != "wortsman2022_wise_ft"]

ADAPTERS = {
    "training.learning_rate": 5e-4,
    "training.lr_scheduler_type": "linear",
    "training.warmup_steps": 0,
    "training.num_train_epochs": 15,
    "training.max_grad_norm": 1.0,
    "intervention.method": "gradual_unfreezing",
}
LIU_2024 = {
    **ADAPTERS,
    "intervention.interval": "auto",
    "intervention.order": "top_down",
    "intervention.initial": ("head", "block.-1"),
    "intervention.signal": "fisher_trace",
    "intervention.detector.window": 3,
    "intervention.detector.tolerance": 0.02,
    "intervention.probe.size": 2048,
    "intervention.probe.every": 10,
    "intervention.probe.labels": "sampled",
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "howard2018_ulmfit": {
        "intervention.learning_rates.layer_decay": pytest.approx(1 / 2.6, abs=5e-5),
        "intervention.interval": 1 / 16,
        "training.num_train_epochs": 16,
        "intervention.initial": ("head",),
        "intervention.order": "top_down",
    },
    "jastrzebski2021_fisher_penalty": {
        "intervention.method": "standard",
        "intervention.fisher_penalty.every": 1,
        "intervention.fisher_penalty.until": None,
    },
    "kumar2022_lpft": {"intervention.release": "all_at_once", "intervention.initial": ("head",)},
    "lee2023_surgical": {
        "intervention.order": "relative_gradient_norm",
        "intervention.probe.size": 5 * 32,
        "intervention.probe.batch_size": 32,
        "training.weight_decay": 1e-4,
    },
    "liu2021_autofreeze": {"intervention.autofreeze.interval": 0.1, "intervention.autofreeze.percentile": 50.0},
    "liu2023_fun": {
        **ADAPTERS,
        "training.per_device_train_batch_size": 32,
        "intervention.order": "fisher_trace",
        "intervention.initial": ("head",),
        "intervention.interval": 800,
        "intervention.probe.labels": "sampled",
    },
    "liu2023_fun_code": {
        **ADAPTERS,
        "training.per_device_train_batch_size": 32,
        "intervention.order": "fisher_trace_batch_mean",
        "intervention.initial": ("head", "block.-1"),
        "intervention.signal_settings": {"fisher_trace_batch_mean": {"labels": "argmax"}},
        "intervention.probe.size": 41 * 32,
        "intervention.probe.batch_size": 32,
    },
    "liu2023_gu_code": {
        **ADAPTERS,
        "intervention.first": 2,
        "intervention.interval": 800,
        "intervention.initial": ("head", "block.-1"),
    },
    "liu2024_low_to_high": {
        "intervention.method": "standard",
        "intervention.learning_rates.switch_factor": 0.1,
        "intervention.learning_rates.switch_at": 200,
        "training.lr_scheduler_type": "constant",
        "training.per_device_train_batch_size": 128,
    },
    "liu2024_mnli": {
        **LIU_2024,
        "training.per_device_train_batch_size": 128,
        "intervention.probe.batch_size": 256,
    },
    "liu2024_squad": {
        **LIU_2024,
        "training.per_device_train_batch_size": 32,
        "training.weight_decay": 0.01,
        "intervention.probe.batch_size": 32,
    },
    "pan2024_lisa": {
        "intervention.lisa.interval": 20,
        "intervention.lisa.num_groups": 1,
        "intervention.lisa.always": None,
        "intervention.lisa.optimizer_state": "keep",
    },
    "sarfi2023_seal": {
        "intervention.generations.generations": 10,
        "intervention.generations.ascent": 40 / 160,
        "intervention.generations.ascent_rate": 0.01,
        "intervention.generations.forget": False,
        "intervention.generations.optimizer_state": "reset",
        "intervention.generations.lr_restart": True,
        "training.lr_scheduler_type": "cosine",
        "training.warmup_steps": 20 / 160,
        "training.label_smoothing_factor": 0.1,
    },
    "wortsman2022_wise_ft": {
        "intervention.weight_interpolation.alpha": 0.5,
        "intervention.weight_interpolation.alphas": tuple(step / 10 for step in range(11)),
        "intervention.weight_interpolation.head": "final",
    },
    "zhou2022_llf": {
        "intervention.generations.generations": 1 + 3,
        "intervention.generations.ascent": None,
        "intervention.generations.forget": True,
        "intervention.generations.forget_norms": False,
    },
}


def of(name: str, **further: Any) -> RunConfig:
    return RunConfig.from_dict({**minimal(), "preset": name, **further})


def test_these_are_all() -> None:
    assert len(preset_names()) == 15
    assert preset_names() == tuple(PRESETS) == tuple(PUBLISHED)


@pytest.mark.parametrize("name", PRESETS)
def test_published_numbers(name: str) -> None:
    config = of(name)
    for path, expected in PUBLISHED[name].items():
        value: Any = config
        for key in path.split("."):
            value = value[key] if isinstance(value, dict) else getattr(value, key)
        assert value == expected, path
        assert isinstance(value, bool) == isinstance(expected, bool), path


@pytest.mark.parametrize("name", PRESETS)
def test_preset_says_where_it_is_from_and_what_it_leaves_open(name: str) -> None:
    text = preset_text(name)
    author, year = re.fullmatch(r"([a-z]+)(20\d\d)_\w+", name).groups()  # type: ignore[union-attr]
    title = preset_title(name)
    assert text.startswith(f"# {title}\n#\n")
    assert re.search(r"arXiv \d{4}\.\d{5}(v1)?\.$", title)
    assert author in title.lower()
    assert year in title or name.startswith("liu2023")  # FUN: on arXiv in 2023, published in 2024
    words = text.replace("\n# ", " ")
    assert "nown to h" in words or "not known" in words  # help or hurt
    assert "eft open" in words
    assert max(map(len, text.splitlines())) <= 120
    assert set(yaml.safe_load(text)) <= {"training", "intervention"}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_a_usable_run(name: str) -> None:
    config = of(name)
    assert config.preset == name
    assert [type(callback).__name__ for callback in make_callbacks(config.intervention)] == PRESETS[name][0]
    arguments = make_arguments(config)
    for key, value in config.training.items():
        assert getattr(arguments, key) == value
    again = RunConfig.from_dict(yaml.safe_load(config.to_yaml()))
    assert again == config
    assert again.fingerprint() == config.fingerprint()
    assert load_intervention(name) == config.intervention


@pytest.mark.parametrize("name", IN_TRAINER)
def test_preset_in_the_arguments(name: str, tmp_path: Path) -> None:
    arguments = EarlyOODArguments(output_dir=str(tmp_path), intervention=name, report_to="none")
    assert [type(callback).__name__ for callback in arguments.make_callbacks()] == PRESETS[name][0]


def test_interpolation_is_not_for_the_arguments(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"a Trainer cannot do it\. Got: weight_interpolation in wortsman"):
        EarlyOODArguments(output_dir=str(tmp_path), intervention="wortsman2022_wise_ft", report_to="none")


# Its run is in test_interpolating.py.
@pytest.mark.sweep(keep=5)
@pytest.mark.parametrize("name", IN_TRAINER)
def test_preset_trains(name: str, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"preset": name, "intervention": PRESETS[name][1]}))
    trainer = make_trainer(
        tmp_path / "out",
        [],
        trainer_class=EarlyOODTrainer,
        arguments_class=EarlyOODArguments,
        intervention=str(file),
        max_steps=20,
    )
    before = {key: value.detach().clone() for key, value in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.global_step == 20
    moved = {key for key, value in trainer.model.named_parameters() if not value.equal(before[key])}
    assert "classifier.weight" in moved
    for key, value in trainer.model.named_parameters():
        assert value.isfinite().all(), key
        assert value.requires_grad, key
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])
    staged = trainer.unfreezing
    expected: dict[str, tuple[int, ...]] = {
        "kumar2022_lpft": (0, 2),
        "howard2018_ulmfit": (0, 1, 2, 3, 4),
        "liu2023_gu_code": (0, 8, 12, 16),
        "liu2023_fun": (0, 4, 8, 12, 16),
        "liu2023_fun_code": (0, 4, 8, 12),
        "lee2023_surgical": (0, 1, 2, 3, 4),
    }
    if name in expected:
        assert staged is not None
        assert staged.schedule.starts == expected[name]
        assert not staged.schedule.waiting
    if name.startswith("liu2024_") and staged is not None:
        assert 1 <= staged.decision.step <= 4
        assert staged.schedule.stages[0] == ("head", "block.2")


# Keys of the user.


def test_what_is_written_wins() -> None:
    config = of(
        "liu2024_squad",
        training={"learning_rate": 2e-5},
        intervention={"interval": 100, "initial": ["head"], "detector": {"window": 8}},
    )
    assert config.training["learning_rate"] == 2e-5
    assert config.training["num_train_epochs"] == 15
    own = config.intervention
    assert (own.interval, own.initial, own.detector.window, own.detector.tolerance) == (100, ("head",), 8, 0.02)
    assert own.probe.size == 2048
    assert RunConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("empty", [None, {}])
def test_an_empty_section_counts_as_not_written(empty: Any) -> None:
    config = of("liu2024_squad", training=empty, intervention=empty)
    assert config == of("liu2024_squad")
    assert RunConfig.from_dict(config.to_dict()) == config


def test_a_section_is_switched_off_with_null() -> None:
    config = of("howard2018_ulmfit", intervention={"learning_rates": None})
    assert config.intervention.learning_rates is None
    assert config.intervention.interval == 1 / 16
    assert RunConfig.from_dict(config.to_dict()) == config


def test_a_preset_changes_nothing_of_itself_and_of_what_was_given() -> None:
    data = {**minimal(), "preset": "liu2024_squad", "training": {"learning_rate": 1e-5}}
    kept = copy.deepcopy(data)
    RunConfig.from_dict(data)
    assert data == kept
    assert of("liu2024_squad").training["learning_rate"] == 5e-4


def test_every_arm_of_a_study_may_have_a_preset() -> None:
    arms = {"standard": {}, "lpft": {"preset": "kumar2022_lpft"}, "lisa": {"preset": "pan2024_lisa"}}
    study = StudyConfig.from_dict(
        {
            **minimal(),
            "training": {"learning_rate": 1e-5},
            "study": {"baseline": "standard", "seeds": [1], "arms": arms},
        }
    )
    methods = [study.run(arm, 1).intervention.method for arm in arms]
    assert methods == ["standard", "gradual_unfreezing", "lisa"]
    # The file's own keys, shared by all arms, win over the preset of an arm.
    arms["standard"] = {"preset": "liu2024_squad"}
    assert study.run("standard", 1).training["learning_rate"] == 1e-5


def test_unknown_preset() -> None:
    every = ", ".join(preset_names())
    with pytest.raises(ConfigurationError, match=r"1 problem.*\n.*preset: is none\. Did you mean 'liu2024_squad'") as e:
        of("liu2024_squat")
    assert every in str(e.value)
    with pytest.raises(ConfigurationError, match=r"no such preset.*Did you mean 'kumar2022_lpft'") as e:
        load_intervention("kumar2022_lptf")
    assert every in str(e.value)
    with pytest.raises(ConfigurationError, match=r"no such preset.*Did you mean 'pan2024_lisa'") as e:
        preset_text("pan2024_lis")
    with pytest.raises(ConfigurationError, match=r"Unknown intervention.*Did you mean 'zhou2022_llf'") as e:
        EarlyOODArguments(output_dir="out", intervention="zhou2022_lf", report_to="none")
    assert every in str(e.value)
    with pytest.raises(ConfigurationError, match=r"1 problem.*\n.*preset: has the wrong type"):
        of(["kumar2022_lpft"])  # type: ignore[arg-type]


def test_file_that_is_not_there_is_no_preset(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such configuration file"):
        load_intervention(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "message"), [("preset: 2024", "not the name of a preset"), ("study: {}", "a study is several")]
)
def test_a_file_for_a_trainer_is_one_intervention(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "intervention.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        load_intervention(path)

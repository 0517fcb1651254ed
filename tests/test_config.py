from __future__ import annotations

import copy
import dataclasses
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainingArguments

from hf_early_ood.config import RunConfig, StudyConfig, describe, load_config, load_run, load_study
from hf_early_ood.config.schema import walk
from hf_early_ood.config.training_arguments import OWN
from hf_early_ood.errors import ConfigurationError
from hf_early_ood.trainer import EarlyOODArguments
from hf_early_ood.training import make_arguments

Write = Callable[[dict[str, Any]], Path]


def minimal() -> dict[str, Any]:
    return {
        "name": "plain",
        "output_dir": "out",
        "model": {"name": "bert-base-uncased"},
        "data": {
            "train": {"source": "a/tweets", "split": "train"},
            "id_validation": {"source": "a/tweets", "split": "validation"},
            "id_test": {"source": "a/tweets", "split": "test"},
            "ood": {"movie": {"source": "a/movie"}, "nyt": {"source": "a/nyt"}},
        },
    }


def study() -> dict[str, Any]:
    arms = {
        "standard": None,
        "gradual": {"intervention": {"method": "gradual_unfreezing", "interval": 50}},
    }
    base = minimal() | {"name": "sentiment", "training": {"max_steps": 200}}
    return base | {"study": {"baseline": "standard", "seeds": [1, 2], "arms": arms}}


def changed(path: str, value: Any, data: dict[str, Any] | None = None) -> dict[str, Any]:
    if data is None and path.startswith("intervention."):
        data = minimal() | {"intervention": {"method": "standard"}}
    data = copy.deepcopy(data or minimal())
    node = data
    *sections, last = path.split(".")
    for key in sections:
        node = node.setdefault(key, {})
    node[last] = value
    return data


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(data: dict[str, Any]) -> Path:
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
        return tmp_path / "run.yaml"

    return write


def lines(error: pytest.ExceptionInfo[ConfigurationError]) -> list[str]:
    return str(error.value).splitlines()[1:]


# Defaults, types, round trips


def test_defaults() -> None:
    config = RunConfig.from_dict(minimal())
    assert (config.seed, config.task, config.training) == (1, "sequence_classification", {})
    assert config.data.train.split == "train"
    assert list(config.data.ood) == ["movie", "nyt"]
    assert (config.intervention.method, config.intervention.interval) == ("standard", "auto")
    assert config.intervention.initial == ("head",)
    assert config.intervention.detector.max_step == "auto"
    assert config.evaluation.confidence == 0.95


def test_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'seed'"):
        RunConfig.from_dict(minimal()).seed = 2  # type: ignore[misc]


def test_what_was_given_is_not_changed() -> None:
    data = changed("training.learning_rate", "2e-5")
    before = copy.deepcopy(data)
    RunConfig.from_dict(data)
    assert data == before


@pytest.mark.parametrize(
    ("path", "given", "read"),
    [
        ("intervention.detector.tolerance", "2e-2", 0.02),
        ("intervention.detector.tolerance", 1, 1.0),
        ("intervention.learning_rates.factors.head", "1e-1", 0.1),
        ("intervention.learning_rates.factors.head", 2, 2.0),
        ("intervention.signal_settings.average_sharpness.rho", "1e-2", 0.01),
        ("intervention.signal_settings.average_sharpness.num_draws", 4, 4),
        ("intervention.signal_settings.worst_case_sharpness.norm", "l2", "l2"),
        ("evaluation.save_model", "false", False),
        ("intervention.interval", 100, 100),
        ("intervention.interval", 0.25, 0.25),
        ("intervention.interval", "auto", "auto"),
        ("intervention.detector.max_step", 1, 1),
        ("intervention.detector.max_step", 1.0, 1.0),
        ("intervention.order", ["block.1", "block.0"], ("block.1", "block.0")),
        ("intervention.order", "bottom_up", "bottom_up"),
        ("intervention.detector.transient", 0, 0),
        ("model.revision", None, None),
        ("training.learning_rate", "2e-5", 2e-5),
        ("training.learning_rate", 1, 1.0),
        ("training.bf16", "true", True),
        ("training.eval_strategy", False, "no"),
        ("training.lr_scheduler_type", "cosine", "cosine"),
        ("training.report_to", ["tensorboard"], ("tensorboard",)),
        ("training.lr_scheduler_kwargs", {"num_cycles": 2}, {"num_cycles": 2}),
    ],
)
def test_values_are_read_by_their_type(path: str, given: Any, read: Any) -> None:
    node: Any = RunConfig.from_dict(changed(path, given))
    for key in path.split("."):
        node = node[key] if isinstance(node, dict) else getattr(node, key)
    assert node == (list(read) if path == "training.report_to" else read)
    assert type(node) is (list if path == "training.report_to" else type(read))


def test_empty_sections_count_as_not_written() -> None:
    data = minimal() | {"training": None, "intervention": None}
    assert RunConfig.from_dict(data) == RunConfig.from_dict(minimal())


FULL = {
    "training.learning_rate": "2e-5",
    "training.save_strategy": "no",
    "training.label_smoothing_factor": 0.1,
    "intervention.method": "gradual_unfreezing",
    "intervention.order": ["block.1", "embeddings"],
    "intervention.detector.max_step": 1.0,
    "data.columns.text_pair": "hypothesis",
    "data.ood.movie.columns": {"text": "sentence", "label": "gold"},
    "data.ood.nyt.labels": {"1": "positive", "3": None},
    "data.ood.nyt.coarse_labels": {"a": "x", "b": "y"},
    "data.ood.nyt.language": "en",
    "data.ood.german": {"source": "b/de", "revision": "no"},
    "evaluation.save_model": False,
}


def full() -> dict[str, Any]:
    data = minimal()
    for path, value in FULL.items():
        data = changed(path, value, data)
    return data


@pytest.mark.parametrize("data", [minimal(), full()], ids=["minimal", "full"])
def test_run_comes_back_equal(write: Write, data: dict[str, Any]) -> None:
    config = RunConfig.from_dict(data)
    assert RunConfig.from_dict(yaml.safe_load(config.to_yaml())) == config
    path = write({})
    path.write_text(config.to_yaml())
    assert load_run(path) == config
    assert load_run(path).fingerprint() == config.fingerprint()


def test_file_has_every_key() -> None:
    data = RunConfig.from_dict(minimal()).to_dict()
    for key, _, _ in walk():
        node = data
        for part in key.replace("<name>", "movie").split("."):
            assert part in node, key
            node = node[part]
            if node is None:  # a section that is off
                break


def test_study_comes_back_equal(write: Write) -> None:
    config = load_study(write(study()))
    path = write({})
    path.write_text(config.to_yaml())
    assert load_study(path) == config
    assert load_study(path).fingerprint() == config.fingerprint()


# Fingerprint


def test_fingerprint_is_the_same_on_every_machine() -> None:
    # A changed value means that finished runs are made again: on purpose only.
    config = RunConfig.from_dict(minimal())
    assert config.fingerprint() == "8e1553d53c81d1c21538fcd00dfe2ba41f114251ae7f3a2f152eed3c9378a114"


def test_fingerprint_leaves_out_the_folder_and_the_order_of_keys() -> None:
    data = full()
    config = RunConfig.from_dict(data)
    turned = dict(reversed(list(data.items()))) | {"output_dir": "elsewhere"}
    assert RunConfig.from_dict(turned).fingerprint() == config.fingerprint()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 2),
        ("name", "other"),
        ("data.max_length", 64),
        ("data.ood.movie.max_examples", 10),
        ("training.learning_rate", 1e-5),
        ("intervention.detector.max_step", 40),
        ("evaluation.seed", 1),
    ],
)
def test_fingerprint_sees_every_setting(path: str, value: Any) -> None:
    data = full()
    assert RunConfig.from_dict(changed(path, value, data)).fingerprint() != RunConfig.from_dict(data).fingerprint()


def test_fingerprint_tells_an_update_from_all_of_training() -> None:
    one, all_of_it = (changed("intervention.detector.max_step", value) for value in (1, 1.0))
    assert RunConfig.from_dict(one).fingerprint() != RunConfig.from_dict(all_of_it).fingerprint()


# Errors


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("intervention.intervall", 5, "intervention.intervall: unknown key. Did you mean 'intervention.interval'?"),
        ("interval", 5, "interval: unknown key. Did you mean 'intervention.interval'?"),
        ("learning_rate", 1e-5, "learning_rate: unknown key. Did you mean 'training.learning_rate'?"),
        ("model.xyz", 1, "model.xyz: unknown key. Known: lora, name, revision."),
        ("data.ood.movie.max_example", 5, "unknown key. Did you mean 'data.ood.movie.max_examples'?"),
        ("seed", "1", "seed: has the wrong type. Got: '1'. Allowed: a whole number >= 0 and < 4294967296."),
        ("seed", 1.0, "seed: has the wrong type. Got: 1.0."),
        ("seed", True, "seed: has the wrong type. Got: True."),
        ("seed", -1, "seed: is out of range. Got: -1."),
        ("seed", 2**32, "seed: is out of range. Got: 4294967296."),
        ("name", "a/b", "name: is not a usable name. Got: 'a/b'. Allowed: letters, digits, - and _"),
        ("output_dir", " ", "output_dir: is empty. Allowed: a folder."),
        ("task", "poetry", "task: has the wrong type. Got: 'poetry'. Allowed: sequence_classification, token_"),
        ("model", "bert", "model: must be a section of keys. Got: 'bert'. Allowed: name, revision, lora."),
        ("model", {}, "model.name: this key is required and missing. Allowed: text."),
        ("model.name", "", "model.name: is empty."),
        ("model.name", "./none", "model.name: this folder does not exist. Got: './none'."),
        ("model.revision", 123, "model.revision: has the wrong type: write text that YAML would read as something"),
        ("data", None, "data.train: this key is required and missing."),
        ("data.train.source", "none.csv", "data.train.source: does not exist. Got: 'none.csv'."),
        ("data.ood.movie.source", "./none", "data.ood.movie.source: does not exist. Got: './none'."),
        ("data.ood.movie.source", "", "data.ood.movie.source: is empty."),
        ("data.ood.movie.max_examples", 0, "is out of range. Got: 0. Allowed: a whole number >= 1, or null."),
        ("data.ood", {}, "data.ood: there is no out-of-distribution set. Allowed: at least one named set."),
        ("data.ood", ["movie"], "data.ood: must be a section of keys. Got: ['movie']."),
        ("data.ood", {False: {"source": "a/no"}}, "data.ood: a name in it is not text: put names that YAML reads"),
        ("data.ood", {"ood/x": {"source": "a/x"}}, "data.ood.ood/x: is not a usable name."),
        ("data.ood", {"": {"source": "a/x"}}, "is not a usable name. Got: ''."),
        ("data.ood.again", {"source": "a/movie"}, "data.ood.again: is the same data as data.ood.movie."),
        ("data.ood.t", {"source": "a/tweets", "split": "test"}, "data.ood.t: is the same data as data.id_test."),
        ("data.id_test.split", "train", "data.id_test: is the same data as data.train."),
        (
            "data.text",
            "sentence",
            "data.text: columns are now named by their roles: write 'data.columns.text: sentence",
        ),
        ("data.label", "gold", "data.label: columns are now named by their roles: write 'data.columns.label: gold'."),
        ("data.columns.text", "", "data.columns.text: is empty. Allowed: the name of a column."),
        ("data.columns.text", ["a", "b"], "data.columns.text: is one column. Got: ['a', 'b']."),
        ("data.columns.text", 3, "data.columns.text: has the wrong type"),
        ("data.columns.text_pair", "text", "data.columns: names a column for two roles. Got: ['text']."),
        (
            "data.columns.txt",
            "a",
            "sequence_classification has no such role. Did you mean 'text'? Allowed: text, text_p",
        ),
        ("data.columns.tags", "a", "data.columns.tags: sequence_classification has no such role."),
        (
            "data.id_test.columns",
            {"text": "label"},
            "data.id_test.columns: names a column for two roles. Got: ['label'",
        ),
        (
            "data.id_test.labels",
            {1: "good"},
            "data.id_test.labels: a name in it is not text: put names that YAML reads",
        ),
        ("data.id_test.labels", {"1": ""}, "data.id_test.labels.1: is empty."),
        ("data.id_test.labels", {"1": 2}, "data.id_test.labels.1: has the wrong type"),
        ("data.train.coarse_labels", {"a": "b"}, "data.train.coarse_labels: training needs its own labels"),
        (
            "data.ood.nyt.language",
            "german",
            "data.ood.nyt.language: is no code of ISO 639. Did you mean 'de' (German)?",
        ),
        ("data.ood.nyt.language", False, "data.ood.nyt.language: has the wrong type: write text that YAML would read"),
        ("data.id_validation.source", "none.csv", "data.id_validation.source: does not exist."),
        ("data.max_length", 0, "data.max_length: is out of range. Got: 0. Allowed: a whole number >= 1."),
        ("data.drop_near_duplicates", 1, "has the wrong type. Got: 1. Allowed: true or false."),
        ("training", 3, "training: must be a section of keys. Got: 3."),
        (
            "training.learning_rte",
            1,
            "training.learning_rte: not a field of TrainingArguments. Did you mean 'learning_rate'?",
        ),
        ("training.output_dir", "x", "training.output_dir: this field is set for you. Set 'output_dir' at the top"),
        ("training.seed", 3, "training.seed: this field is set for you. Set 'seed' at the top level"),
        (
            "training.remove_unused_columns",
            True,
            "training.remove_unused_columns: this field is set for you. Leave it out",
        ),
        ("training.per_device_eval_batch_size", 8, "this field is set for you. Set 'evaluation.batch_size'."),
        ("training.hub_token", "hf_x", "this field is set for you. Use 'hf-early-ood publish'"),
        ("training.ddp_rewrap", "sometimes", "training.ddp_rewrap: has the wrong type. Got: 'sometimes'."),
        ("training.learning_rate", "fast", "training.learning_rate: has the wrong type. Got: 'fast'."),
        ("training.learning_rate", "nan", "training.learning_rate: has the wrong type. Got: 'nan'."),
        ("training.learning_rate", -1.0, "training.learning_rate: is out of range. Got: -1.0. Allowed: a number >= 0"),
        ("training.max_steps", "1e3", "training.max_steps: has the wrong type. Got: '1e3'. Allowed: a whole number."),
        ("training.max_steps", 0, "training.max_steps: is out of range. Got: 0."),
        ("training.lr_scheduler_type", "cosin", "training.lr_scheduler_type: is not one of its values. Got: 'cosin'."),
        ("training.metric_for_best_model", "eval_ood/movie_loss", "OOD data must not select the model"),
        ("intervention.method", "magic", "Got: 'magic'. Allowed: standard, gradual_unfreezing, lisa, autofreeze."),
        (
            "intervention.learning_rates.factors.head",
            "high",
            "factors.head: has the wrong type. Got: 'high'. Allowed: a number.",
        ),
        ("intervention.learning_rates.factors", 0.1, "factors: must be a section of keys. Got: 0.1."),
        (
            "intervention.signal_settings.average_sharpness",
            0.1,
            "signal_settings.average_sharpness: must be a section of keys. Got: 0.1.",
        ),
        ("intervention.interval", 0, "intervention.interval: is out of range. Got: 0. Allowed: auto, a whole number"),
        ("intervention.interval", 1.0, "intervention.interval: is out of range. Got: 1.0."),
        ("intervention.interval", 0.0, "intervention.interval: is out of range. Got: 0.0."),
        ("intervention.interval", "soon", "intervention.interval: has the wrong type. Got: 'soon'. Allowed: auto, a"),
        ("intervention.order", "sideways", "Got: 'sideways'. Allowed: top_down, bottom_up, random, fi"),
        ("intervention.order", [], "intervention.order: names no layer group."),
        ("intervention.order", ["a", "a"], "intervention.order: names a layer group twice. Got: 'a'."),
        ("intervention.initial", [], "intervention.initial: names no layer group."),
        ("intervention.initial", "head", "intervention.initial: has the wrong type. Got: 'head'. Allowed: a list"),
        ("intervention.schedule", "none.yaml", "intervention.schedule: this file does not exist. Got: 'none.yaml'."),
        ("intervention.detector.max_step", 0, "intervention.detector.max_step: is out of range. Got: 0."),
        ("intervention.detector.max_step", 1.5, "intervention.detector.max_step: is out of range. Got: 1.5."),
        ("intervention.detector.transient", -1, "intervention.detector.transient: is out of range. Got: -1."),
        ("intervention.detector.tolerance", float("nan"), "tolerance: has the wrong type. Got: nan."),
        ("intervention.detector.window", 0, "intervention.detector.window: is out of range."),
        ("intervention.probe.size", 16, "intervention.probe.size: the probe set is smaller than a batch. Got: 16."),
        ("intervention.probe.labels", "true", "Got: 'true'. Allowed: sampled, expected, empirical, argmax."),
        ("evaluation.confidence", 1, "evaluation.confidence: is out of range. Got: 1"),
        ("evaluation.bootstrap_samples", 5, "evaluation.bootstrap_samples: is out of range. Got: 5."),
    ],
)
def test_error(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=r"1 problem in the configuration|problems") as error:
        RunConfig.from_dict(changed(path, value))
    assert any(message in line for line in lines(error)), str(error.value)
    if path != "data":
        assert len(lines(error)) == 1, str(error.value)


def test_what_arguments_call_otherwise_is_a_key_of_its_own() -> None:
    """Of EarlyOODArguments, only what belongs to the launcher is written under ``training``."""
    own, theirs = ({field.name for field in dataclasses.fields(cls)} for cls in (EarlyOODArguments, TrainingArguments))
    own -= theirs
    assert set(OWN) < own
    keys = {key for key, _, _ in walk()}
    for name in own - set(OWN):
        with pytest.raises(ConfigurationError, match=rf"training\.{name}: not a field") as raised:
            RunConfig.from_dict(changed(f"training.{name}", "x"))
        assert str(raised.value).split("Set '")[1].split("'")[0] in keys
    config = RunConfig.from_dict(changed("training.ddp_rewrap", True))
    assert make_arguments(config).ddp_rewrap
    assert not make_arguments(RunConfig.from_dict(minimal())).ddp_rewrap


def test_id_test_may_be_the_validation_set() -> None:
    config = RunConfig.from_dict(changed("data.id_test.split", "validation"))
    assert config.data.id_test == config.data.id_validation


def gradual(**settings: Any) -> dict[str, Any]:
    data = minimal() | {"intervention": {"method": "gradual_unfreezing"}}
    for path, value in settings.items():
        data = changed(path.replace("__", "."), value, data)
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            gradual(intervention__interval=100, training__max_steps=100),
            "intervention.interval: no layer would be released before training ends after training.max_steps=100",
        ),
        (
            gradual(intervention__detector__max_step=50, training__max_steps=50),
            "intervention.detector.max_step: the fallback would come after training ends",
        ),
        (
            gradual(intervention__detector__max_step=29),
            "the fallback comes before the detector can compare two averages (a measurement every 10 updates, window"
            " of 3). Got: 29. Allowed: at least 30",
        ),
        (
            gradual(intervention__detector__max_step=50, intervention__detector__transient=50),
            "intervention.detector.transient: ends after the fallback",
        ),
    ],
)
def test_error_between_keys(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match="1 problem") as error:
        RunConfig.from_dict(data)
    assert message in lines(error)[0]
    data["intervention"]["method"] = "standard"
    RunConfig.from_dict(data)


def test_schedule_file_takes_the_place_of_the_other_keys(tmp_path: Path) -> None:
    schedule = tmp_path / "schedule.yaml"
    schedule.write_text("interval: 5")
    config = RunConfig.from_dict(gradual(intervention__schedule=str(schedule)))
    assert config.intervention.schedule == str(schedule)
    with pytest.raises(ConfigurationError, match="2 problems") as error:
        RunConfig.from_dict(
            gradual(intervention__schedule=str(schedule), intervention__interval=5, intervention__release="all_at_once")
        )
    assert lines(error)[0].startswith("  intervention.interval: is given here and by the file")
    assert lines(error)[1].startswith("  intervention.release: is given here and by the file")


def test_sources_that_exist_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "movie.csv").write_text("text,label\n")
    config = RunConfig.from_dict(changed("data.ood.movie.source", str(tmp_path / "movie.csv")))
    assert config.data.ood["movie"].source.endswith("movie.csv")


def test_all_problems_are_reported_at_once() -> None:
    data = minimal() | {"seeed": 3, "training": {"learning_rte": 1, "output_dir": "x", "max_steps": 10}}
    data["model"] = {"nam": "bert"}
    data["data"]["ood"]["movie"] = {"source": "none.csv", "max_examples": 0}
    data["data"]["max_length"] = "long"
    data["intervention"] = {
        "method": "gradual_unfreezing",
        "interval": 20,
        "probe": {"size": 4},
        "detector": {"window": 2.5},
    }
    with pytest.raises(ConfigurationError, match=r"^11 problems in the configuration:\n") as error:
        RunConfig.from_dict(data)
    assert sorted(line.split(":")[0].strip() for line in lines(error)) == [
        "data.max_length",
        "data.ood.movie.max_examples",
        "data.ood.movie.source",
        "intervention.detector.window",
        "intervention.interval",
        "intervention.probe.size",
        "model.nam",
        "model.name",
        "seeed",
        "training.learning_rte",
        "training.output_dir",
    ]


def test_not_a_section_at_all() -> None:
    with pytest.raises(ConfigurationError, match="must be a section of keys"):
        RunConfig.from_dict(["name"])  # type: ignore[arg-type]


# Files and command lines


def test_command_line_wins(write: Write) -> None:
    own = {"training": {"learning_rate": 1e-3, "max_steps": 100}, "intervention": {"method": "gradual_unfreezing"}}
    path = write(minimal() | own)
    words = ["--training.learning_rate", "2e-5", "--seed=7", "--data.ood.movie.max_examples", "100"]
    words += ["--intervention.order", "[block.0, embeddings]", "--training.max_steps", "-1", "--model.revision="]
    config = load_run(path, words)
    assert config.training == {"learning_rate": 2e-5, "max_steps": -1}
    assert config.seed == 7
    assert config.data.ood["movie"].max_examples == 100
    assert config.intervention.order == ("block.0", "embeddings")
    assert config.model.revision is None


def test_last_word_of_the_command_line_wins(write: Write) -> None:
    assert load_run(write(minimal()), ["--seed", "2", "--seed", "3"]).seed == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeed", "3"], "seeed: unknown key. Did you mean 'seed'?"),
        (["seed", "3"], "seed: this word of the command line belongs to no key. Allowed: --some.key value."),
        (["--seed"], "seed: has no value on the command line. Allowed: --seed value or --seed=value."),
        (["--evaluation.save_model", "--seed", "2"], "evaluation.save_model: has no value on the command line."),
        (["--seed", "[1"], "seed: its value on the command line is not YAML. Got: '[1'."),
        (["--name.first", "a"], "name.first: 'name' is a single value and has no keys. Got: 'plain'."),
        (["--data.ood.new.max_examples", "5"], "data.ood.new.source: this key is required and missing."),
    ],
)
def test_error_of_the_command_line(write: Write, words: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=r"run\.yaml") as error:
        load_config(write(minimal()), words)
    assert any(message in line for line in lines(error)), str(error.value)


def test_key_written_twice_is_an_error(write: Write) -> None:
    path = write({})
    path.write_text(yaml.safe_dump(minimal()) + "training:\n  max_steps: 5\n  max_steps: 6\nname: again\n")
    with pytest.raises(ConfigurationError, match="2 problems") as error:
        load_config(path)
    text = path.read_text().splitlines()
    assert f"training.max_steps: is written twice, in lines {len(text) - 2} and {len(text) - 1}" in str(error.value)
    assert f"name: is written twice, in lines {text.index('name: plain') + 1} and {len(text)}" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "is not YAML"), ("", "is not a section of keys. Got: None"), ("- a", "is not a section of keys")],
)
def test_file_that_is_not_usable(write: Write, text: str, message: str) -> None:
    path = write({})
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        load_config(path)


def test_no_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no such configuration file. Got: .*none\.yaml"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_config(tmp_path)


def test_run_and_study_are_told_apart(write: Write) -> None:
    assert isinstance(load_config(write(minimal())), RunConfig)
    with pytest.raises(ConfigurationError, match="is a run, not a study"):
        load_study(write(minimal()))
    assert isinstance(load_config(write(study())), StudyConfig)
    with pytest.raises(ConfigurationError, match="is a study, not a run"):
        load_run(write(study()))


# Studies


def test_study_makes_its_runs() -> None:
    runs = list(StudyConfig.from_dict(study()).runs())
    assert [(run.name, run.seed) for run in runs] == [
        ("standard", 1),
        ("gradual", 1),
        ("standard", 2),
        ("gradual", 2),
    ]
    assert runs[1].output_dir == "out/gradual/seed1"
    assert [run.intervention.method for run in runs[:2]] == ["standard", "gradual_unfreezing"]
    assert all(run.training == {"max_steps": 200} for run in runs)
    assert len({run.fingerprint() for run in runs}) == 4


def test_command_line_reaches_base_seeds_and_arms(write: Write) -> None:
    words = ["--training.max_steps=300", "--study.seeds", "[5]", "--study.arms.gradual.intervention.interval", "20"]
    runs = list(load_study(write(study()), words).runs())
    assert [run.seed for run in runs] == [5, 5]
    assert [run.training["max_steps"] for run in runs] == [300, 300]
    assert runs[1].intervention.interval == 20


def test_override_that_an_arm_hides_is_said(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    data, words = study(), ["--intervention.interval", "20"]
    data["study"]["arms"]["standard"] = {}
    with caplog.at_level(logging.WARNING):
        load_study(write(changed("study.arms.standard.intervention", {"method": "standard"}, data)), words)
    assert "--intervention.interval does not reach arm 'gradual'" in caplog.text


def test_arm_may_give_what_the_base_lacks() -> None:
    data = study()
    del data["model"]
    for arm in ("standard", "gradual"):
        data["study"]["arms"][arm] = {"model": {"name": arm}}
    assert [run.model.name for run in StudyConfig.from_dict(data).runs()][:2] == ["standard", "gradual"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("study.baseline", "standrd", "study.baseline: is none of the arms. Did you mean 'standard'? Got: 'standrd'."),
        ("study.seeds", [], "study.seeds: is empty. Allowed: one seed or more, as in [1, 2, 3]."),
        ("study.seeds", [1, 2, 1], "study.seeds: names a seed twice. Got: 1."),
        ("study.seeds", [-1], "study.seeds: is out of range. Got: -1."),
        ("study.seeds", "1,2", "study.seeds: has the wrong type. Got: '1,2'. Allowed: a list, each item a whole"),
        ("study.sedes", [1], "study.sedes: unknown key. Did you mean 'study.seeds'?"),
        ("study.arms.b/c", {}, "study.arms.b/c: is not a usable name."),
        ("study.arms.gradual", 5, "study.arms.gradual: must be a section of keys. Got: 5."),
        ("study.arms.gradual.seed", 5, "study.arms.gradual.seed: cannot be set here: the seeds of a study are in"),
        ("study.arms.gradual.name", "x", "study.arms.gradual.name: cannot be set here: the study names its runs"),
        ("study.arms.gradual.intervention.intervall", 5, "study.arms.gradual.intervention.intervall: unknown key."),
        ("study.arms.gradual.intervention.interval", 900, "study.arms.gradual.intervention.interval: no layer would"),
        ("seed", 3, "seed: cannot be set here: the seeds of a study are in 'study.seeds'. Got: 3."),
        ("data.max_length", 0, "data.max_length: is out of range. Got: 0."),
        ("name", "a b", "name: is not a usable name. Got: 'a b'."),
        ("output_dir", 3, "output_dir: has the wrong type"),
        ("study.win_rates.gradual", ["standrd"], "study.win_rates.gradual: standrd is none of the arms. Did you mean"),
        ("study.win_rates.gradual", ["gradual"], "study.win_rates.gradual: must be a list of other arms, each once."),
        ("study.arms", {"standard": {}}, "study.arms: a study compares arms. Got: ['standard']."),
    ],
)
def test_error_of_a_study(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match="problem") as error:
        StudyConfig.from_dict(changed(path, value, study()))
    assert any(message in line for line in lines(error)), str(error.value)
    assert len(lines(error)) == 1, str(error.value)


def test_all_problems_of_a_study_are_reported_at_once() -> None:
    data = study()
    del data["output_dir"]
    data["model"]["nme"] = "x"
    data["study"]["baseline"] = "none"
    data["study"]["arms"]["gradual"]["training"] = {"learning_rte": 1}
    with pytest.raises(ConfigurationError, match=r"^4 problems") as error:
        StudyConfig.from_dict(data)
    assert [line.split(":")[0].strip() for line in lines(error)] == [
        "output_dir",
        "study.baseline",
        "model.nme",
        "study.arms.gradual.training.learning_rte",
    ]


def test_study_without_a_section() -> None:
    with pytest.raises(ConfigurationError, match="3 problems") as error:
        StudyConfig.from_dict(study() | {"study": None})
    assert [line.split(":")[0].strip() for line in lines(error)] == ["study.baseline", "study.seeds", "study.arms"]


# Help and speed


def test_help_describes_every_key() -> None:
    text = describe()
    for key, field, _ in walk():
        assert f"--{key}" in text or key == "training"
        assert field.metadata["help"].endswith("."), key
    assert "--study.arms.<name>  (required)" in text
    assert "--intervention.initial  (default: [head])" in text
    # A section that is off comes before its keys, and requires nothing of who does not write it.
    off = text.index("--intervention.fisher_penalty  (default: null)\n      Penalty on the Fisher trace; null: off.")
    assert off < text.index("--intervention.fisher_penalty.alpha  (required in this section)")
    assert text.index("--data.id_validation  (default: null)") < text.index("--data.id_validation.source  (required in")
    assert text.count("(required in this section)") == 4
    assert max(map(len, text.splitlines())) <= 100
    assert "%" not in text  # argparse reads it as a placeholder


def test_import_and_help_are_light() -> None:
    code = (
        "import sys; from hf_early_ood.config import describe; describe();"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'datasets', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


# One file over another


def written(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def test_a_file_extends_another_section_by_section(tmp_path: Path) -> None:
    base = yaml.safe_dump({**minimal(), "training": {"learning_rate": 1e-4, "max_steps": 7}})
    (tmp_path / "sub").mkdir()
    written(tmp_path, base=base)
    written(tmp_path / "sub", child="extends: ../base.yaml\nname: child\ntraining: {max_steps: 9}\n")
    written(tmp_path / "sub", grandchild="extends: child.yaml\nseed: 5\n")
    config = load_run(tmp_path / "sub" / "grandchild.yaml", ["--training.learning_rate", "3e-4"])
    assert (config.name, config.seed) == ("child", 5)
    assert config.training == {"learning_rate": 3e-4, "max_steps": 9}
    assert config.data == RunConfig.from_dict(minimal()).data


@pytest.mark.parametrize(
    ("child", "message"),
    [
        ("extends: none.yaml", r"child\.yaml extends a file that cannot be used: There is no such configuration file"),
        ("extends: other.yaml", r"Files extend each other in a circle.*child\.yaml -> other\.yaml -> child\.yaml"),
        ("extends: child.yaml", r"Files extend each other in a circle.*child\.yaml -> child\.yaml"),
        ("extends: [a]", r"extends: is not the name of a file"),
        ("extends: bad.yaml", r"bad\.yaml is not YAML"),
    ],
)
def test_a_file_that_cannot_be_extended(tmp_path: Path, child: str, message: str) -> None:
    written(tmp_path, child=child, other="extends: child.yaml", bad="a: [")
    with pytest.raises(ConfigurationError, match=message):
        load_run(tmp_path / "child.yaml")


@pytest.mark.parametrize("section", ["", "arms", [], 3])
def test_a_study_that_is_no_section(section):
    with pytest.raises(ConfigurationError, match=r"study: must be a section of keys"):
        StudyConfig.from_dict({"name": "a", "output_dir": "b", "study": section})


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"task": "multiple_choice"}, "task"),
        ({"evaluation": {"confidence": 0.5}}, "evaluation.confidence"),
        ({"evaluation": {"margin": 0.1, "batch_size": 8}}, "evaluation.margin"),
    ],
)
def test_what_all_arms_must_share(keys, key):
    arms = {"standard": {}, "other": keys}
    study = {"baseline": "standard", "seeds": [1], "arms": arms}
    with pytest.raises(ConfigurationError, match=rf"study\.arms\.other\.{key}: cannot be set here"):
        StudyConfig.from_dict({"name": "a", "output_dir": "b", "study": study})

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from hf_early_ood import comparing, experiment, names, study
from hf_early_ood.callbacks import previewing
from hf_early_ood.config import RunConfig, StudyConfig
from hf_early_ood.errors import ConfigurationError, DataError, EarlyOODError, ResumeError, UnsupportedModelError
from hf_early_ood.evaluation.metrics import METRICS
from hf_early_ood.evaluation.predictions import read_predictions
from hf_early_ood.evaluation.suites import evaluate_predictions
from hf_early_ood.hub import facts
from hf_early_ood.names import GAP_TO_ID, OOD_MACRO_MEAN, OOD_WORST, RELATIVE_ROBUSTNESS
from hf_early_ood.results import RunRecord, read_run, read_study
from hf_early_ood.schedules import UnfreezingSchedule
from hf_early_ood.training import mean_loss
from tests import tiny_project
from tests.tiny_project import make_project, run_settings, study_settings, write_rows


@pytest.fixture
def project(tmp_path):
    experiment._load.cache_clear()
    return make_project(tmp_path / "project")


BETWEEN_SETS = (GAP_TO_ID, RELATIVE_ROBUSTNESS)


def run_config(project, **changes):
    return RunConfig.from_dict(run_settings(project, **changes))


def test_a_run_writes_its_folder(project):
    record = experiment.run(run_config(project), command="test")
    folder = project / "out"
    assert {file.name for file in folder.iterdir()} == {
        names.CONFIG_FILE,
        names.RESULTS_FILE,
        names.DYNAMICS_FILE,
        names.PREDICTIONS_FILE,
        names.SIGNAL_FIGURE,
        names.MODEL_FOLDER,
    }
    assert read_run(folder / names.RESULTS_FILE) == record
    assert record.status == "complete"
    assert record.training.updates == 12
    assert set(record.evaluation.splits) == {"id_validation", "id_test", "ood/a", "ood/b"}
    assert record.evaluation.selected_by == "last update"
    stages = record.intervention.stages
    assert [stage.released for stage in stages][:2] == [("head",), ("block.2",)]
    assert stages[1].step == record.intervention.decision.step
    assert record.probes[names.FISHER_TRACE].count == record.intervention.decision.step + 1
    assert 0 < record.probes[names.FISHER_TRACE].share_of_training_time < 1
    predictions = read_predictions(folder / names.PREDICTIONS_FILE)
    for split, part in predictions.items():
        accuracy = record.evaluation.splits[split].metrics[names.ACCURACY].value
        assert accuracy == pytest.approx(np.mean(part.columns["label"] == part.columns["prediction"]))
    # What is stored scores, to the last bit, as it did when it was made.
    assert evaluate_predictions(predictions, num_resamples=100).to_record() == record.evaluation
    model = AutoModelForSequenceClassification.from_pretrained(folder / names.MODEL_FOLDER)
    assert model.config.id2label == {0: "bad", 1: "good"}


def test_the_record_says_which_weights_were_judged(project):
    """What is published later is compared with it."""
    record = experiment.run(run_config(project))
    saved = project / "out" / "model"
    assert set(record.weights) >= {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert record.weights == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in saved.iterdir()}
    assert record.label_names == ("bad", "good")
    assert record.model.is_local
    assert {split.is_local for split in record.data.values()} == {True}
    assert record.training.hyperparameters["optimizer"] == "AdamW"
    old = {key: value for key, value in record.to_dict().items() if key not in ("weights", "label_names")}
    for part in ("is_local", "hyperparameters"):
        for section in (old["model"], old["training"], *old["data"].values()):
            section.pop(part, None)
    older = RunRecord.from_dict(old)  # of a version that did not note them
    assert (older.weights, older.label_names, older.model.is_local) == ({}, (), None)


def test_a_run_without_its_model_notes_no_weights(project):
    assert experiment.run(run_config(project, evaluation__save_model=False)).weights == {}


def test_a_finished_run_is_not_made_again(project, monkeypatch):
    first = experiment.run(run_config(project))
    monkeypatch.setattr(experiment, "prepare", None)  # would raise if anything were loaded
    assert experiment.run(run_config(project)) == first


def test_the_same_seed_gives_the_same_run(project):
    first = experiment.run(run_config(project))
    second = experiment.run(run_config(project, output_dir=str(project / "again")))
    assert first.evaluation == second.evaluation
    assert first.training.loss_curve == second.training.loss_curve


def test_groups_that_training_was_too_short_for_are_recorded(project):
    record = experiment.run(run_config(project, intervention__interval=5))
    assert [stage.released for stage in record.intervention.stages] == [("head",), ("block.2",), ("block.1",)]
    assert record.intervention.never_trained == ("embeddings", "block.0")


def test_with_adapters_the_encoder_stays_and_stages_release_them(project):
    record = experiment.run(run_config(project, model__lora={"r": 2}, intervention__interval=2))
    assert record.status == "complete"
    counts = [stage.trainable_parameters for stage in record.intervention.stages]
    assert counts == sorted(counts)
    assert counts[-1] < record.model.num_parameters / 2
    assert record.intervention.never_trained == ()
    saved = {path.name for path in (project / "out" / names.MODEL_FOLDER).iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= saved


def test_a_folder_of_another_run_is_refused(project):
    experiment.run(run_config(project, intervention__method="standard"))
    with pytest.raises(ResumeError, match=r"belongs to another run.*differs in training\.max_steps"):
        experiment.run(run_config(project, intervention__method="standard", training__max_steps=13))


def test_a_folder_with_something_else_is_refused(project):
    (project / "out").mkdir()
    (project / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(ResumeError, match="not empty and holds no run"):
        experiment.run(run_config(project))
    assert (project / "out" / "thesis.tex").read_text() == "years of work"


def test_a_crash_leaves_a_record_and_the_run_goes_on_from_its_checkpoint(project, monkeypatch):
    settings = {"training__save_strategy": "steps", "training__save_steps": 4}
    whole = experiment.run(run_config(project, output_dir=str(project / "whole"), **settings))

    def out_of_disk(*arguments, **keywords):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "evaluate_predictions", out_of_disk)
        with pytest.raises(OSError, match="No space left"):
            experiment.run(run_config(project, **settings))
    failed = read_run(project / "out" / names.RESULTS_FILE)
    assert (failed.status, failed.error) == ("failed", "OSError: No space left on device")
    assert failed.training.updates == 12
    again = experiment.run(run_config(project, **settings))
    assert again.evaluation == whole.evaluation


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"data__columns": {"text": "sentence"}},
            DataError,
            r"train .*A column is not there\. Got: sentence\. Allowed: text, label",
        ),
        (
            {"data__columns": {"label": "stars"}},
            DataError,
            r"A column is not there\. Got: stars\. .*Name the columns in data\.columns",
        ),
        (
            {"data__train": {"source": "train.jsonl"}},
            EarlyOODError,
            r"data\.train\.source: does not exist\. Got: 'train\.jsonl'",
        ),
        ({"intervention__interval": 12}, ConfigurationError, "no layer would be released before training ends"),
        (
            {"intervention__probe": {"size": 4, "batch_size": 8}},
            ConfigurationError,
            "probe set is smaller than a batch",
        ),
        ({"intervention__probe": {"size": 65, "batch_size": 8}}, ConfigurationError, "larger than the training set"),
        ({"intervention__initial": ["classifier"]}, ConfigurationError, "nothing to train in this model"),
        (
            {"intervention__learning_rates": {"factors": {"encoder": 2}}},
            ConfigurationError,
            "factors names a layer group that training does not have.*'encoder'",
        ),
        (
            {"intervention__learning_rates": {"factors": {"block.*": 2, "head|block.2": 3}}},
            ConfigurationError,
            "Two patterns in factors match the layer group block.2",
        ),
        (
            {"intervention__learning_rates": {"switch_factor": 0.1, "switch_at": 12}},
            ConfigurationError,
            "switch_at is as long as training",
        ),
        (
            {"intervention__learning_rates": {"release_warmup": 20}},
            ConfigurationError,
            "release_warmup is as long as training.*training makes 12 updates",
        ),
        ({"intervention": {"generations": {"generations": 13}}}, ConfigurationError, "more generations than updates"),
        (
            {"intervention": {"generations": {"generations": 6, "ascent": 2}}},
            ConfigurationError,
            "The ascent is as long as a generation",
        ),
        ({"intervention": {"generations": {"boundary": "block.3"}}}, EarlyOODError, "block.3"),
        (
            {"intervention": {"generations": {"boundary": "embeddings"}}},
            ConfigurationError,
            "no layer group below the boundary",
        ),
        (
            {"intervention": {"perturbation": {"at": 13, "kind": "shuffle"}}},
            ConfigurationError,
            "The perturbation comes after training ends. Got: at=13, training makes 12 updates",
        ),
        (
            {"intervention": {"perturbation": {"at": 3, "kind": "noise", "groups": ["block.3"]}}},
            EarlyOODError,
            "block.3",
        ),
        (
            {"intervention": {"perturbation": {"at": 3, "kind": "redraw_magnitudes", "groups": ["head"]}}},
            ConfigurationError,
            "no magnitudes at the start",
        ),
        ({"intervention": {"pretext": {"kind": "masked_lm", "updates": 12}}}, ConfigurationError, "never be trained"),
        ({"training__optim": "adamw_nonsense"}, ConfigurationError, "adamw_nonsense"),
        ({"data__max_length": 4096}, ConfigurationError, "max_length does not fit"),
    ],
)
def test_bad_input_is_found_by_check_before_training(project, changes, error, message):
    with pytest.raises(error, match=message):
        experiment.check(run_config(project, **changes))
    assert not (project / "out").exists()


def test_a_switch_that_nothing_decides_is_found_by_check(project):
    """With a schedule file, only the file says whether the interval is decided."""
    rates, probe = {"switch_factor": 0.1, "switch_at": "auto"}, {"size": 8, "batch_size": 4, "every": 1}
    groups = ["embeddings", "block.0", "block.1", "block.2", "head"]

    def text(interval):
        path = project / f"{interval}.yaml"
        path.write_text(UnfreezingSchedule(groups, interval=interval).to_yaml())
        own = {"method": "gradual_unfreezing", "schedule": str(path), "learning_rates": rates, "probe": probe}
        return experiment.check(run_config(project, intervention=own))

    assert "multiplied by 0.1 until the interval is decided" in text("auto")
    with pytest.raises(ConfigurationError, match=r"none will\. Got: one that has nothing to decide"):
        text(2)


def test_a_first_stage_that_nothing_ends_is_found_by_check(project):
    path = project / "schedule.yaml"
    groups = ["embeddings", "block.0", "block.1", "block.2", "head"]
    path.write_text(UnfreezingSchedule(groups, interval=2, stages=[["head"]]).to_yaml())
    own = {"method": "gradual_unfreezing", "schedule": str(path), "weight_interpolation": {"head": "first_stage"}}
    with pytest.raises(ConfigurationError, match="There is no first stage"):
        experiment.check(run_config(project, intervention=own))


def test_check_finds_layers_without_an_initializer(project, monkeypatch):
    def refuse(*parts):
        raise UnsupportedModelError("Nothing initializes these.")

    monkeypatch.setattr(previewing, "initial_values", refuse)
    assert "later: head" in experiment.check(run_config(project, intervention={"generations": {"boundary": "head"}}))
    forget = {"generations": {"boundary": "head", "forget": True}}
    with pytest.raises(UnsupportedModelError, match="Nothing initializes these"):
        experiment.check(run_config(project, intervention=forget))


def test_a_run_records_its_perturbation_and_keeps_no_start(project):
    own = {"at": 1.0, "kind": "reset_to_start", "groups": ["head", "block.0"], "parameters": "without_norms"}
    config = run_config(project, intervention={"perturbation": own})
    assert "After 12 of 12 updates, reset_to_start: block.0, head (" in experiment.check(config)
    record = experiment.run(config)
    assert record.intervention.also == ("perturbation",)
    found = record.intervention.perturbation
    assert (found.step, found.kind, list(found.effective_std)) == (12, "reset_to_start", ["block.0", "head"])
    assert all(std > 0 for std in found.effective_std.values())
    assert found.settings == {"parameters": "without_norms"}
    assert not (project / "out" / names.PERTURBATION_START_FILE).exists()
    assert read_run(project / "out" / names.RESULTS_FILE).intervention == record.intervention


def test_a_pretext_is_looked_at_by_check_and_recorded(project):
    settings = {"kind": "masked_lm", "updates": 0.25}
    config = run_config(project, intervention={"pretext": settings})
    line = "For the first 3 updates of the run, masked_lm is trained, not the task (language head: new)."
    assert experiment.check(config).splitlines()[-1] == line
    record = experiment.run(config)
    assert (record.intervention.method, record.intervention.also) == ("standard", ("pretext",))
    assert facts.method_in_words(record) == "pretext"
    assert dict(facts.settings(record))["intervention.pretext.kind"] == "masked_lm"
    assert any("Frankle" in citation for citation in facts.citations(record))
    saved = load_file(project / "out" / names.MODEL_FOLDER / "model.safetensors")
    assert not [name for name in saved if "cls" in name]
    path = project / "model" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mask_token": None}))
    with pytest.raises(ConfigurationError, match="The tokenizer has no mask token"):
        experiment.check(run_config(project, intervention={"pretext": settings}, output_dir=str(project / "other")))


def test_unseen_label_in_an_ood_set(project):
    write_rows(project / "a.jsonl", [{"text": "so so", "label": "meh"}, {"text": "very fine", "label": "good"}])
    with pytest.raises(DataError, match=r"ood/a.*meh"):
        experiment.check(run_config(project))


def test_empty_set(project):
    (project / "b.jsonl").write_text("")
    with pytest.raises(DataError, match=r"ood/b.*empty"):
        experiment.check(run_config(project))


def test_model_without_blocks(project):
    from transformers import AutoConfig

    config = AutoConfig.for_model("bert", num_hidden_layers=0, hidden_size=16, num_attention_heads=2, vocab_size=30)
    from transformers import BertModel

    BertModel(config).save_pretrained(project / "model")
    with pytest.raises(EarlyOODError, match=r"No list of blocks was found in BertForSequenceClassification.*blocks="):
        experiment.check(run_config(project))


def test_check_says_what_would_be_trained(project):
    text = experiment.check(run_config(project, intervention__interval=2))
    assert "train: 64" in text
    assert "12 updates" in text
    assert "- [block.2]     # from update 2" in text
    assert "12 updates of all layers" in experiment.check(run_config(project, intervention__method="standard"))


def test_what_was_noticed_about_a_set_is_said_and_recorded(project):
    long, short = {"text": "the " * 30, "label": "good"}, {"text": "the phone", "label": "bad"}
    write_rows(project / "a.jsonl", [long, short, short, {"text": " ", "label": "bad"}])
    config = run_config(
        project, data__leave_out_blank=True, data__ood__a__language="de-AT", intervention={"method": "standard"}
    )
    noticed = "1 repeat an earlier one exactly, 1 are longer than the model sees, 1 left out because they have no text"
    assert f"ood/a: 3 (2 bad, 1 good); {noticed}" in experiment.check(config)
    record = experiment.run(config).data["ood/a"]
    assert (record.n, record.duplicates, record.truncated, record.language) == (3, 1, 1, "de")
    assert record.findings == {"left out because they have no text": 1}


def test_a_study_compares_its_arms_and_makes_only_what_is_missing(project, monkeypatch):
    config = StudyConfig.from_dict(study_settings(project))
    record = study.run_study(config, command="test")
    folder = project / "out"
    assert read_study(folder / names.STUDY_FILE) == record
    assert {arm: len(runs) for arm, runs in record.arms.items()} == {"standard": 2, "gradual": 2}
    compared = {(c.split, c.metric) for c in record.comparisons}
    splits = {"id_validation", "id_test", "ood/a", "ood/b", OOD_MACRO_MEAN, OOD_WORST, *BETWEEN_SETS}
    of_probabilities = (names.BRIER, names.ECE, names.BRIER_CALIBRATED, names.ECE_CALIBRATED)
    expected = {(split, metric) for split in splits for metric in (*METRICS, *of_probabilities)}
    # An error has no share that is kept.
    assert compared == expected - {(RELATIVE_ROBUSTNESS, metric) for metric in of_probabilities}
    for comparison in record.comparisons:
        assert comparison.covers == "examples and seeds"
        assert comparison.low <= comparison.difference <= comparison.high
        if comparison.split == "ood/a":
            values = {
                arm: np.mean([run.evaluation.splits["ood/a"].metrics[comparison.metric].value for run in runs])
                for arm, runs in record.arms.items()
            }
            assert comparison.difference == pytest.approx(values["gradual"] - values["standard"])
    assert "gradual" in (folder / names.VERDICT_FILE).read_text()
    assert (folder / names.COMPARISON_FIGURE).stat().st_size > 1000

    (rate,) = comparing.count_wins(record, {"gradual": ("standard",)}, 0.95)
    means = {a: [run.evaluation.ood[record.metric].macro_mean.value for run in runs] for a, runs in record.arms.items()}
    pairs = list(zip(means["gradual"], means["standard"], strict=True))
    assert rate.value == np.mean([0.5 if a == b else a > b for a, b in pairs])
    assert (rate.others, rate.num_seeds, rate.covers) == (("standard",), 2, "seeds")

    # One run is lost: only that one is made again.
    (folder / "gradual" / "seed2" / names.RESULTS_FILE).unlink()
    made = []
    original = experiment._train_and_evaluate

    def counted(config, *rest):
        made.append((config.name, config.seed))
        return original(config, *rest)

    monkeypatch.setattr(experiment, "_train_and_evaluate", counted)
    again = study.run_study(config)
    assert made == [("gradual", 2)]
    assert again.comparisons == record.comparisons


def test_a_study_goes_on_after_a_failed_run(project, monkeypatch):
    original = experiment._train_and_evaluate

    def fails_once(config, *rest):
        if (config.name, config.seed) == ("gradual", 1):
            raise RuntimeError("loss exploded")
        return original(config, *rest)

    monkeypatch.setattr(experiment, "_train_and_evaluate", fails_once)
    record = study.run_study(StudyConfig.from_dict(study_settings(project)))
    assert [run.status for run in record.arms["gradual"]] == ["failed", "complete"]
    assert {comparison.n_seeds for comparison in record.comparisons} == {1}
    assert "Failed and left out: gradual seed 1" in (project / "out" / names.VERDICT_FILE).read_text()


def test_a_study_checks_every_arm_before_the_first_run(project):
    settings = study_settings(project)
    settings["study"]["arms"]["gradual"]["intervention"]["initial"] = ["classifier"]
    with pytest.raises(ConfigurationError, match="nothing to train in this model"):
        study.run_study(StudyConfig.from_dict(settings))
    assert not (project / "out").exists()


def test_dynamics_file_is_strict_json(project):
    experiment.run(run_config(project))
    for line in (project / "out" / names.DYNAMICS_FILE).read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_project_itself_is_learnable():
    """The tiny data is no noise: what tests compare could differ."""
    rows = tiny_project.sentences(50, 0)
    assert {row["label"] for row in rows} == {"good", "bad"}
    assert len({row["text"] for row in rows}) == 50


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(project, monkeypatch):
    settings = {"training__save_strategy": "steps", "training__save_steps": 4, "training__save_total_limit": 5}
    whole = experiment.run(run_config(project, output_dir=str(project / "whole"), **settings))

    def killed(*arguments, **keywords):
        raise MemoryError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "evaluate_predictions", killed)
        with pytest.raises(MemoryError, match="killed"):
            experiment.run(run_config(project, **settings))
    for step in (8, 12):  # begun, not finished: transformers writes trainer_state.json last
        (project / "out" / f"checkpoint-{step}" / "trainer_state.json").unlink()
    again = experiment.run(run_config(project, **settings))
    assert again.evaluation == whole.evaluation
    assert again.training.updates == 12


def test_a_training_that_was_complete_is_not_trained_further(project, monkeypatch):
    """With a constant learning rate one more update would change every weight."""
    settings = {"training__lr_scheduler_type": "constant"}
    whole = experiment.run(run_config(project, output_dir=str(project / "whole"), **settings))
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "predict_splits", None)
        with pytest.raises(TypeError, match="callable"):
            experiment.run(run_config(project, **settings))
    assert list((project / "out").glob("checkpoint-*"))
    again = experiment.run(run_config(project, **settings))
    assert again.evaluation == whole.evaluation
    assert again.training.updates == 12
    assert again.intervention == whole.intervention
    assert not list((project / "out").glob("checkpoint-*"))


def test_leftovers_of_a_killed_write_do_not_block_a_folder(project):
    (project / "out").mkdir()
    (project / "out" / ".config.0123.tmp.yaml").write_text("half")
    assert experiment.claim(project / "out", run_config(project)) is None


def test_a_study_never_takes_up_the_runs_of_another(project):
    study.run_study(StudyConfig.from_dict({**study_settings(project), "study": one_seed(project, [1])}))
    changed = study_settings(project, training__max_steps=9)
    changed["study"] = one_seed(project, [2, 1])
    with pytest.raises(ResumeError, match="belongs to another run"):
        study.run_study(StudyConfig.from_dict(changed))
    assert not (project / "out" / "standard" / "seed2").exists()


def one_seed(project, seeds):
    return {**study_settings(project)["study"], "seeds": seeds}


def test_a_study_reports_the_failure_of_this_time(project, monkeypatch):
    def fails(message):
        def failing(config, *rest):
            raise RuntimeError(message)

        return failing

    config = StudyConfig.from_dict({**study_settings(project), "study": one_seed(project, [1])})
    for message in ("first", "second"):
        monkeypatch.setattr(experiment, "_train_and_evaluate", fails(message))
        record = study.run_study(config)
        assert {run.error for runs in record.arms.values() for run in runs} == {f"RuntimeError: {message}"}
    monkeypatch.setattr(experiment, "prepare", fails("disk is full"))
    monkeypatch.setattr(study, "check", lambda config: "")
    record = study.run_study(config)
    assert {run.error for runs in record.arms.values() for run in runs} == {"RuntimeError: disk is full"}


def test_a_finished_run_on_data_that_has_changed_is_refused(project):
    config = run_config(project, intervention__method="standard")
    experiment.run(config)
    rows = (project / "b.jsonl").read_text().splitlines(keepends=True)
    (project / "b.jsonl").write_text("".join(rows[:-1]))
    experiment._load.cache_clear()  # as in another process
    with pytest.raises(ResumeError, match=r"data has changed.*other examples in ood/b than"):
        experiment.run(config)


def test_an_output_folder_that_cannot_be_written_is_found_before_training(project):
    (project / "afile").write_text("")
    for folder in ("afile", "afile/deeper"):
        with pytest.raises(ConfigurationError, match=r"cannot be written.*afile is no folder"):
            experiment.check(run_config(project, output_dir=str(project / folder)))


def test_a_run_that_saves_weights_only_begins_anew(project, monkeypatch):
    """From weights alone it could not go on as it would have."""
    settings = {"training__save_strategy": "steps", "training__save_steps": 4, "training__save_only_model": True}
    whole = experiment.run(run_config(project, output_dir=str(project / "whole"), **settings))
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "predict_splits", None)
        with pytest.raises(TypeError, match="callable"):
            experiment.run(run_config(project, **settings))
    assert (project / "out" / "checkpoint-12").is_dir()
    again = experiment.run(run_config(project, **settings))
    assert again.evaluation == whole.evaluation
    assert again.training.loss_curve == whole.training.loss_curve


def test_the_loss_curve_covers_every_update(project):
    training = experiment.run(run_config(project)).training
    assert training.loss_curve[-1][0] == training.updates
    assert training.train_loss == pytest.approx(mean_loss(training.loss_curve))
    assert {8, 12} <= {step for step, _ in training.loss_curve}  # at the checkpoints, not every 10 updates only


def test_learning_rates_are_those_that_the_updates_were_made_with(project):
    training = experiment.run(run_config(project)).training
    # Linear from 1e-2 at the first of 12 updates.
    expected = [(step, 1e-2 * (1 - (step - 1) / 12)) for step, _ in training.loss_curve]
    assert training.learning_rate_curve == tuple((step, pytest.approx(rate)) for step, rate in expected)


def test_the_set_that_is_wrong_is_named(project):
    (project / "out").mkdir()
    with pytest.raises(ConfigurationError, match=r"train: max_length does not fit the tokenizer"):
        experiment.check(run_config(project, data__max_length=1000))


@pytest.mark.parametrize("content", ["", "{"])
def test_settings_of_a_run_that_cannot_be_read(project, content):
    (project / "out").mkdir()
    (project / "out" / names.CONFIG_FILE).write_text(content)
    with pytest.raises(ResumeError, match=r"(?s)settings cannot be read.*out/config\.yaml.*delete the folder"):
        experiment.run(run_config(project))

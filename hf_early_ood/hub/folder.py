"""What would be uploaded: the exact files, checked against the record of the run before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hf_early_ood import names
from hf_early_ood.atomic import dumps, write_bytes
from hf_early_ood.attributions import BUNDLED
from hf_early_ood.errors import PublishError
from hf_early_ood.folders import model_sha256
from hf_early_ood.hub.benchmarks import benchmark_files
from hf_early_ood.hub.card import CardOptions, Chosen, model_card
from hf_early_ood.hub.choosing import choose
from hf_early_ood.hub.redaction import Redactor, is_absolute
from hf_early_ood.results import ArmRun, RunRecord, read_run, read_study

FIGURES = "figures"
README = "README.md"
# What a saved model, adapter or tokenizer consists of; no pickle is among it, whatever it is called.
_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack")
_OF_TRAINING = ("trainer_state.json", "optimizer.safetensors")
_CAPTIONS = {
    names.SIGNAL_FIGURE: "The signal with the decision, and which layer groups train at which update",
    names.COMPARISON_FIGURE: "All arms of the study on each set",
}


@dataclass(frozen=True)
class Publication:
    """Everything that goes into one repository.

    Attributes:
        files: Path in the repository -> a file of the run's folder, or content that was made for it.
        notes: What the person who publishes should know; it may name paths of the machine and is not published.
    """

    files: Mapping[str, Path | bytes]
    notes: tuple[str, ...] = ()

    def size(self, path: str) -> int:
        """Bytes of one file."""
        content = self.files[path]
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    def content(self, path: str) -> bytes:
        """What is in one file."""
        content = self.files[path]
        return content if isinstance(content, bytes) else content.read_bytes()

    def write(self, folder: Path) -> None:
        """Write the exact folder that would be uploaded."""
        for path in self.files:
            write_bytes(folder / path, self.content(path))


@dataclass(frozen=True)
class Source:
    """A folder that is published: a run, or the run that was chosen from a study.

    Attributes:
        folder: What was given.
        run_folder: Of the run.
        record: Of the run.
        chosen: The study and why it is this run; None: the run was given.
    """

    folder: Path
    run_folder: Path
    record: RunRecord
    chosen: Chosen | None = None


def read_source(folder: Path) -> Source:
    """The run in a folder, or the best one of the study in it; whether it may be published is checked.

    Raises:
        PublishError: It failed, was not evaluated, has no weights, or they are not those that were evaluated.
        ResumeError: There is no results file, or it cannot be read.
    """
    if not (folder / names.STUDY_FILE).is_file():
        return Source(folder, folder, _checked(folder, read_run(inside(folder, names.RESULTS_FILE))))
    study = read_study(inside(folder, names.STUDY_FILE))
    arm, arm_run, why = choose(study)
    run_folder = inside(folder, arm_run.path)
    record = _checked(run_folder, read_run(inside(run_folder, names.RESULTS_FILE)))
    if ArmRun.from_run(record, arm_run.path, arm_run.size) != arm_run or record.arm != arm:
        raise PublishError(
            "The study's file is not about the run that is in the folder now.",
            got=run_folder,
            fix="Give the command of the study again: it compares what is there.",
        )
    return Source(folder, run_folder, record, Chosen(study, why))


def inside(folder: Path, path: str) -> Path:
    """A path in a folder, if it does not lead out of it.

    Raises:
        PublishError: It does, by ``..`` or through a link.
    """
    target = folder / path
    if not target.resolve().is_relative_to(folder.resolve()):
        raise PublishError(
            "A file would be taken from outside of the folder.",
            got=f"{target} -> {target.resolve()}",
            fix="Replace the link by the file itself.",
        )
    return target


def _checked(folder: Path, record: RunRecord) -> RunRecord:
    if record.status != "complete":
        raise PublishError("The run has failed.", got=f"{folder}: {record.error}", fix="Let it finish first.")
    if record.evaluation is None or not record.evaluation.splits:
        raise PublishError("The run has not been evaluated.", got=folder, fix="Let it finish first.")
    model = inside(folder, names.MODEL_FOLDER)
    found = model_sha256(model)
    weights = {name for name in found if name.endswith(".safetensors")}
    if not weights:
        pickles = [file.name for file in model.rglob("*") if file.suffix in _PICKLES] if model.is_dir() else []
        raise PublishError(
            "The run has no weights in safetensors.",
            got=f"{model}: {', '.join(pickles) or 'nothing'}",
            fix="Make it again with evaluation.save_model=true; pickled weights are not published.",
        )
    if not record.weights:
        raise PublishError(
            "The record does not say which weights were evaluated, so nothing shows that it is these.",
            got=folder / names.RESULTS_FILE,
            fix="Make the run again with this version, which notes their SHA-256.",
        )
    differing = sorted(name for name in weights | record.weights.keys() if found.get(name) != record.weights.get(name))
    if differing:
        raise PublishError(
            "The model is not the one that was evaluated.",
            got=f"{', '.join(differing)} in {model}",
            allowed="the SHA-256 that the record notes",
            fix="Delete the folder and make the run again.",
        )
    return record


def prepare_model(source: Source, options: CardOptions, benchmarks: Sequence[str] = ()) -> Publication:
    """Everything for a model repository: model or adapter, tokenizer, card, figures, results, settings and series.

    Args:
        source: What is published.
        options: What the record does not say.
        benchmarks: Benchmarks whose results are written to ``.eval_results``, as ``benchmark_files`` takes them.

    Raises:
        PublishError: A link leads out of the folder, or a benchmark is none of the evaluated sets.
    """
    record, folder = source.record, source.run_folder
    redactor = Redactor(record)
    notes: list[str] = []
    files: dict[str, Path | bytes] = dict(_model_files(folder, redactor, notes))
    files |= _figures(source)
    files[names.RESULTS_FILE] = _json(redactor.value(record.to_dict()))
    config = yaml.safe_dump(redactor.value(record.config), sort_keys=False, allow_unicode=True)
    files[names.CONFIG_FILE] = config.encode("utf-8")
    series = inside(folder, names.DYNAMICS_FILE)
    if series.is_file():
        lines = [line for line in series.read_text(encoding="utf-8").split("\n") if line]
        files[names.DYNAMICS_FILE] = "".join(_line(line, redactor) for line in lines).encode("utf-8")
    if source.chosen is not None:
        files[names.STUDY_FILE] = _json(redactor.value(source.chosen.study.to_dict()))
    files |= benchmark_files(record, benchmarks, options.repo_id, redactor)
    captions = [
        (path, _CAPTIONS.get(Path(path).name, Path(path).stem.replace("_", " ")))
        for path in files
        if path.startswith(FIGURES) and path.endswith(".png")
    ]
    card = model_card(record, options=options, chosen=source.chosen, figures=captions, redactor=redactor)
    files[README] = card.content.encode("utf-8")
    return Publication(dict(sorted(files.items())), (*redactor.notes(), *notes))


def _model_files(folder: Path, redactor: Redactor, notes: list[str]) -> Iterator[tuple[str, Path | bytes]]:
    model = folder / names.MODEL_FOLDER
    for file in sorted(model.rglob("*")):
        path = file.relative_to(model).as_posix()
        inside(folder, f"{names.MODEL_FOLDER}/{path}")
        if file.is_dir() or path == README:  # the one that peft writes is empty
            continue
        if file.suffix not in _SUFFIXES or file.name in _OF_TRAINING:
            notes.append(f"{file} is left out")
        elif file.suffix == ".json":
            yield path, _without_paths(file, redactor, notes)
        else:
            yield path, file


def _without_paths(file: Path, redactor: Redactor, notes: list[str]) -> Path | bytes:
    """A file of settings without the folders of this machine; the file itself where it names none."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return file
    if not isinstance(settings, dict):
        return file
    changed = {
        key: _named(value, redactor)
        for key, value in settings.items()
        # Other texts may begin with a slash and be no path, such as a token.
        if isinstance(value, str) and key.endswith(("name_or_path", "_file")) and _named(value, redactor) != value
    }
    notes += [f"{file.name}, {key}: {settings[key]} is given as {value}" for key, value in changed.items()]
    return file if not changed else _json({**settings, **changed})


def _named(value: str, redactor: Redactor) -> str:
    """Of a bundled model, which was found in an installed package, the name that others can load."""
    base = redactor.base_model
    if is_absolute(value) and base in BUNDLED:
        return BUNDLED[base].name
    return redactor.name(value)


def _figures(source: Source) -> Iterator[tuple[str, Path]]:
    folders = [source.run_folder] if source.chosen is None else [source.run_folder, source.folder]
    for folder in folders:
        for pattern in ("*.png", "*.svg", f"{FIGURES}/*.png", f"{FIGURES}/*.svg"):
            for file in sorted(folder.glob(pattern)):
                yield f"{FIGURES}/{file.name}", inside(folder, file.relative_to(folder).as_posix())


def _line(line: str, redactor: Redactor) -> str:
    return dumps(redactor.value(json.loads(line))) + "\n"


def _json(value: Any) -> bytes:
    return (dumps(value, indent=2) + "\n").encode("utf-8")

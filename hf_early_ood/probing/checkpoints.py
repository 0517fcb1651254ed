"""Which saved models a path means: one model, or the checkpoints of a training in the order of their updates."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_early_ood import names
from hf_early_ood.bundled import BUNDLED_PREFIX, resolve_model
from hf_early_ood.checkpoints import checkpoints, completed_updates, step_of
from hf_early_ood.errors import DataError
from hf_early_ood.folders import known_sha256
from hf_early_ood.results import read_run

logger = logging.getLogger(__name__)

_MODEL_FILES = ("config.json", "adapter_config.json")
_WEIGHTS = ("*.safetensors", "*.bin")
_NO_WEIGHTS = ("training_args.bin",)


@dataclass(frozen=True)
class SavedModel:
    """A model on disk or on the Hub.

    Attributes:
        step: Completed updates; 0 where they are not known.
        path: A folder, ``bundled:all-MiniLM-L6-v2``, or a name on the Hub.
        name: What a reader calls it.
        step_known: Whether ``step`` is known.
    """

    step: int
    path: str
    name: str
    step_known: bool = True


def weights_sha256(path: str) -> str | None:
    """Hash of the weight files of a saved model; None if there are none on this machine.

    Example:
        >>> weights_sha256("a/name-on-the-hub") is None
        True
    """
    files = {file for pattern in _WEIGHTS for file in Path(resolve_model(path)).glob(pattern)}
    found = sorted(file for file in files if file.name not in _NO_WEIGHTS)
    return known_sha256(*found) if found else None  # many adapters have one base model


def is_on_this_machine(path: str | PathLike[str]) -> bool:
    """Whether a model is a folder or comes with the package, rather than being on the Hub.

    Example:
        >>> is_on_this_machine("bundled:all-MiniLM-L6-v2"), is_on_this_machine("a/name-on-the-hub")
        (True, False)
    """
    return fspath(path).startswith(BUNDLED_PREFIX) or Path(path).expanduser().exists()


def find_saved_models(path: str | PathLike[str]) -> tuple[SavedModel, ...]:
    """The models that a path or a name stands for, by update.

    A folder with ``checkpoint-<step>`` folders is a series; in the output folder of a recipe, so is the final
    ``model`` if it is that of the last update. Any other folder must hold a model; its update is read from
    ``trainer_state.json`` or from its name.

    Args:
        path: A folder, ``bundled:all-MiniLM-L6-v2``, or a name on the Hub.

    Raises:
        DataError: A folder that is not there, or that holds no model.

    Example:
        >>> find_saved_models("distilbert/distilbert-base-uncased")[0].step
        0
    """
    name = fspath(path)
    folder = Path(name).expanduser()
    if name.startswith(BUNDLED_PREFIX) or not folder.exists():
        if name.startswith((".", "/", "~")):
            raise DataError("There is no such folder.", got=name, fix="Check the path.")
        return (SavedModel(0, name, name, step_known=False),)
    if not folder.is_dir():
        raise DataError("A saved model is a folder.", got=name, fix="Give the folder that the file is in.")
    models = {step: SavedModel(step, str(path), path.name) for step, path in checkpoints(folder).items()}
    final = _final_model(folder)
    if final is not None:
        models.setdefault(final.step, final)
    if models:
        if holds_model(folder):
            logger.info("%s holds a model beside its checkpoints; only the checkpoints are measured.", folder)
        return tuple(models[step] for step in sorted(models))
    if holds_model(folder):
        step = _step(folder)
        return (SavedModel(step or 0, str(folder), folder.resolve().name, step_known=step is not None),)
    entries = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(entries[:8]) + (", ..." if len(entries) > 8 else "")
    raise DataError(
        "The folder holds no saved model and no checkpoint.",
        got=f"{folder}, with {shown}" if entries else f"{folder}, which is empty",
        allowed=f"a folder with {' or '.join(_MODEL_FILES)}, or with folders named {PREFIX_CHECKPOINT_DIR}-<step>",
        fix="Train with save_strategy='steps' and save_total_limit=None to keep a series of checkpoints.",
    )


def holds_model(folder: Path) -> bool:
    """Whether a folder is that of one saved model or adapter.

    Example:
        >>> holds_model(Path("no/such/folder"))
        False
    """
    return any((folder / file).is_file() for file in _MODEL_FILES)


def _final_model(folder: Path) -> SavedModel | None:
    """The model that a run of ours ended with; None if there is none, or if an earlier update was chosen."""
    path, results = folder / names.MODEL_FOLDER, folder / names.RESULTS_FILE
    if not (holds_model(path) and results.is_file()):
        return None
    record = read_run(results)
    last = record.evaluation is not None and record.evaluation.selected_by == names.LAST_UPDATE
    if record.training is None or not last:
        return None
    return SavedModel(record.training.updates, str(path), path.name)


def _step(folder: Path) -> int | None:
    """Completed updates of one saved model, as far as it says."""
    completed = completed_updates(folder)
    return step_of(folder.resolve()) if completed is None else completed

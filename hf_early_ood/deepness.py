"""At which layer a saved model makes its predictions, on every set of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hf_early_ood import names
from hf_early_ood.atomic import replacing, write_json
from hf_early_ood.config import RunConfig, load_suite
from hf_early_ood.config.schema import PredictionDepthConfig
from hf_early_ood.errors import ConfigurationError, ResumeError
from hf_early_ood.evaluating import material
from hf_early_ood.evaluation.predictions import read_predictions
from hf_early_ood.folders import writing
from hf_early_ood.probes.depth import PredictionDepth
from hf_early_ood.report.layout import Table
from hf_early_ood.report.reading import split_label
from hf_early_ood.tasks.depth import DepthReader, support_size
from hf_early_ood.tasks.loading import load_tokenizer

FILES = (names.DEPTH_FILE, names.DEPTHS_FILE)


@dataclass(frozen=True, eq=False)
class DepthReport:
    """Prediction depth of one model on every set.

    Attributes:
        model: Folder or name of the model.
        splits: Split to the depths of its examples, in its order; of ``train``, of those that are the support.
        command: What the user typed.
    """

    model: str
    splits: Mapping[str, PredictionDepth]
    command: str = ""

    def to_dict(self) -> dict[str, Any]:
        """All but the single examples, as plain JSON types."""
        splits = {split: found.to_dict() for split, found in self.splits.items()}
        return {"model": self.model, "command": self.command, "splits": splits}

    def tables(self) -> list[Table]:
        """Mean depth by split, and the share of the examples on which the probe of each layer agrees with the model."""
        parts = {_title(split): found for split, found in self.splits.items()}
        first = next(iter(parts.values()))
        depth = [
            (title, f"{part.num_examples:,}", f"{part.mean:.2f}", f"{100 * part.share:.1f}")
            for title, part in parts.items()
        ]
        rows = [(layer, *(f"{100 * part.agreement[layer]:.1f}" for part in parts.values())) for layer in first.layers]
        about = (
            f"{first.k} neighbors among {first.num_support:,} training examples, {first.pooling} over positions. Of"
            f" {len(first.layers)} layers; 0: decided after the embeddings, {len(first.layers)}: after the last layer"
            " the neighbors still say something else than the model."
        )
        return [
            Table("Prediction depth", ("set", "examples", "mean depth", "percent of the layers"), depth, about),
            Table("Neighbors that say what the model says, percent", ("after", *parts), rows),
        ]

    def write(self, folder: Path) -> None:
        """Write the numbers of the splits and, in a Parquet file, of every example; each file whole or not at all."""
        layers = next(iter(self.splits.values())).layers
        columns: dict[str, Any] = {
            names.SPLIT: np.concatenate([[split] * part.num_examples for split, part in self.splits.items()]),
            "row": np.concatenate([np.arange(part.num_examples) for part in self.splits.values()]),
            names.DEPTH: np.concatenate([part.depth for part in self.splits.values()]),
            names.PREDICTION: np.concatenate([part.predictions for part in self.splits.values()]),
        }
        probes = np.concatenate([part.probes for part in self.splits.values()])
        columns |= {f"probe/{layer}": probes[:, number] for number, layer in enumerate(layers)}
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / names.DEPTHS_FILE) as unfinished:
                pq.write_table(pa.table(columns), unfinished)
            write_json(folder / names.DEPTH_FILE, self.to_dict())  # last: where it is, the other is


def depth_suite(
    source: str,
    suite: str | Path | None,
    *,
    revision: str | None = None,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """The settings for a saved model, or for the model of a run, on the sets of a recipe.

    Args:
        source: Folder of a run (with ``model`` in it), folder of a saved model or adapter, or a name on the Hub.
        suite: Any recipe, run or study; None: that of the run.
        revision: Revision of the model on the Hub.
        overrides: As in `hf_early_ood.config.load_config`.

    Raises:
        ConfigurationError: There is no suite, or it is not usable.
        ResumeError: The run has kept no model.
    """
    folder, is_run = Path(source), _is_run(source)
    if is_run and not (folder / names.MODEL_FOLDER).is_dir():
        raise ResumeError(
            "The run has kept no model.", got=source, fix="Run it again with evaluation.save_model: true."
        )
    if suite is None and not is_run:
        what = "a study" if (folder / names.STUDY_FILE).is_file() else "not a run that has ended"
        raise ConfigurationError(
            "Nothing says which sets to look at.",
            got=f"{source}, which is {what if folder.exists() else 'not there'}",
            fix="Give a recipe with --suite, or the folder of a run.",
        )
    checkpoint = str(folder / names.MODEL_FOLDER) if is_run else source
    path = folder / names.CONFIG_FILE if suite is None else suite
    return load_suite(path, checkpoint, "depth", name="depth", revision=revision, overrides=overrides, with_train=True)


def labels_of_run(source: str) -> tuple[str, ...] | None:
    """Label of each class of the model of a run, which an adapter does not say itself; None: not known.

    Args:
        source: As in `depth_suite`.
    """
    file = Path(source) / names.PREDICTIONS_FILE
    if not (_is_run(source) and file.is_file()):
        return None
    parts = read_predictions(file).values()
    return next((part.label_names for part in parts if part.coarse is None and part.label_names), None)


def measure_depth(
    suite: RunConfig, *, label_names: Sequence[str] | None = None, tokenizer: str | None = None, command: str = ""
) -> DepthReport:
    """Prediction depth of a saved model on the training set and every test set of a recipe.

    Args:
        suite: From `depth_suite`; ``evaluation.prediction_depth`` says how, without it the defaults do.
        label_names: Label of each class of the model, in its order, where its config does not say it as the data does.
        tokenizer: Name or folder, where none is beside the model.
        command: What the user typed, for the record.

    Raises:
        UnsupportedModelError: The model cannot be read, has no head, or is for another task.
        DataError: The data is not usable, or has a label that the model does not know.
        ConfigurationError: There are too few training examples.
    """
    checked = material(suite, label_names, with_train=True)
    train = checked.datasets[names.TRAIN]
    support_size(suite.evaluation.prediction_depth or PredictionDepthConfig(), len(train))  # raises
    loaded = load_tokenizer(tokenizer or suite.model.name, revision=None if tokenizer else suite.model.revision)
    model = checked.blueprint.load(device="cuda" if torch.cuda.is_available() else "cpu")
    reader = DepthReader(checked.task, model, loaded, train, suite.evaluation)
    splits = {names.TRAIN: reader.depth_of_training()}
    splits |= {split: reader.depth(part) for split, part in checked.datasets.items() if split != names.TRAIN}
    return DepthReport(suite.model.name, splits, command)


def _is_run(source: str) -> bool:
    return all((Path(source) / file).is_file() for file in (names.CONFIG_FILE, names.RESULTS_FILE))


def _title(split: str) -> str:
    return "training" if split == names.TRAIN else split_label(split)

"""Checks of the section ``data``: sources that are there, roles that the task has, languages that exist."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_early_ood.config.checks import check_name, is_file_source
from hf_early_ood.config.parsing import Problems, join, usable
from hf_early_ood.errors import did_you_mean
from hf_early_ood.languages import closest_language, is_language
from hf_early_ood.names import CHOICES, QUESTION_ANSWERING, SEQUENCE_CLASSIFICATION
from hf_early_ood.roles import ROLES, columns_by_role

if TYPE_CHECKING:
    from hf_early_ood.config.schema import DataConfig, RunConfig, SplitConfig

_OLD_KEYS = ("text", "text_pair", "label")
_NEEDS_VALIDATION = ("load_best_model_at_end", "metric_for_best_model")


def note_old_keys(keys: Any, problems: Problems) -> None:
    """Note the keys that ``data.columns`` has replaced, and take them out."""
    section = keys.get("data") if isinstance(keys, Mapping) else None
    for key in _OLD_KEYS:
        if isinstance(section, dict) and key in section:
            column = section.pop(key)
            problems.add(f"data.{key}", f"columns are now named by their roles: write 'data.columns.{key}: {column}'")


def check_data(config: RunConfig, problems: Problems) -> None:
    """Note every problem of the sets, alone and between them."""
    data = config.data
    task = config.task if usable(config.task) else None
    splits: dict[str, SplitConfig] = {"data.train": data.train}
    if data.id_validation is None:
        _check_nothing_chosen(config, problems)
    else:
        splits["data.id_validation"] = data.id_validation
    splits["data.id_test"] = data.id_test
    if usable(data.ood):
        if not data.ood:
            problems.add("data.ood", "there is no out-of-distribution set", allowed="at least one named set")
        for name, split in data.ood.items():
            check_name(name, f"data.ood.{name}", problems)
            splits[f"data.ood.{name}"] = split
    _check_columns(data.columns, "data.columns", task, problems)
    seen: dict[str, str] = {}
    for path, split in splits.items():
        if not usable(split):
            continue
        _check_source(split, path, problems)
        _check_columns(split.columns, f"{path}.columns", task, problems)
        _check_distinct(data, split, path, task, problems)
        _check_labels(split, path, task, problems)
        if usable(split.language) and split.language is not None and not is_language(split.language):
            hint = closest_language(split.language)
            problems.add(f"{path}.language", f"is no code of ISO 639. {hint}", got=split.language)
        identity = (split.source, split.name, split.split, split.revision, split.columns)
        if not usable(*identity):
            continue
        first = seen.setdefault(repr(identity), path)
        # The two ID sets may be one: many benchmarks publish no labels of their test split.
        if first != path and (first, path) != ("data.id_validation", "data.id_test"):
            problems.add(path, f"is the same data as {first}", got=split.source, allowed="other data")


def _check_nothing_chosen(config: RunConfig, problems: Problems) -> None:
    """Without a validation set nothing can be selected, and no other set may stand in for it."""
    training = config.training if usable(config.training) else {}
    asked = [f"training.{key}" for key in _NEEDS_VALIDATION if training.get(key)]
    asked += ["training.eval_strategy"] if training.get("eval_strategy", "no") != "no" else []
    if usable(config.intervention) and config.intervention.weight_interpolation is not None:
        asked.append("intervention.weight_interpolation")
    for path in asked:
        problems.add(path, "needs examples to choose by: give data.id_validation")


def _check_source(split: SplitConfig, path: str, problems: Problems) -> None:
    if not usable(split.source):
        return
    if not split.source.strip():
        problems.add(f"{path}.source", "is empty", allowed="a file, a folder, or the name of a data set")
    elif is_file_source(split.source) and not Path(split.source).expanduser().exists():
        problems.add(
            f"{path}.source",
            "does not exist",
            got=split.source,
            allowed="a file or folder (relative to the working directory), or the name of a data set",
        )


def _check_columns(columns: Mapping[str, Any], path: str, task: str | None, problems: Problems) -> None:
    if not usable(columns) or task is None:
        return
    roles = ROLES[task]
    for role, column in columns.items():
        key = join(path, role)
        if role not in roles:
            problems.add(key, f"{task} has no such role. {did_you_mean(role, roles)}", allowed=", ".join(roles))
        elif isinstance(column, tuple) and role != CHOICES:
            problems.add(key, "is one column", got=list(column), allowed="the name of a column")
        elif isinstance(column, tuple) and (len(set(column)) < 2 or len(set(column)) < len(column)):
            problems.add(key, "must be two or more different columns, or one with lists", got=list(column))
        elif usable(column) and not all(name.strip() for name in _names(column)):
            problems.add(key, "is empty", allowed="the name of a column")


def _check_distinct(data: DataConfig, split: SplitConfig, path: str, task: str | None, problems: Problems) -> None:
    if task is None or not usable(data.columns, split.columns):
        return
    columns = columns_by_role(task, {**data.columns, **split.columns})
    if not usable(*columns.values()):
        return
    names = [name for column in columns.values() for name in set(_names(column))]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        at = f"{path}.columns" if split.columns else "data.columns"
        problems.add(at, "names a column for two roles", got=twice, allowed="a column of its own for each role")


def _check_labels(split: SplitConfig, path: str, task: str | None, problems: Problems) -> None:
    if usable(split.labels) and split.labels and task == QUESTION_ANSWERING:
        problems.add(f"{path}.labels", "there are no labels in question answering")
    for key in ("labels", "coarse_labels"):
        mapping = getattr(split, key)
        for name, label in mapping.items() if usable(mapping) else ():
            if isinstance(label, str) and not label.strip():
                problems.add(f"{path}.{key}.{name}", "is empty", allowed="the name of a label")
    if not usable(split.coarse_labels) or not split.coarse_labels:
        return
    if path in ("data.train", "data.id_validation"):
        problems.add(f"{path}.coarse_labels", "training needs its own labels: only test sets may have fewer")
    elif task not in (None, SEQUENCE_CLASSIFICATION):
        problems.add(f"{path}.coarse_labels", f"is for {SEQUENCE_CLASSIFICATION} only")


def _names(column: str | tuple[str, ...]) -> tuple[str, ...]:
    return (column,) if isinstance(column, str) else column

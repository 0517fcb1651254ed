"""All splits of a run with one label vocabulary, and the leaks between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations

from datasets import Dataset
from transformers.utils import logging

from hf_early_ood import names
from hf_early_ood.data.columns import Columns
from hf_early_ood.data.labels import Vocabulary, coarser
from hf_early_ood.data.loading import Loaded, read_split
from hf_early_ood.data.reports import (
    WITHOUT_ANSWER,
    DataReport,
    SplitReport,
    exact_duplicates,
    fingerprint,
    joined_texts,
    label_counts,
)
from hf_early_ood.duplicates import DEFAULT_THRESHOLD, near_duplicates
from hf_early_ood.errors import DataError
from hf_early_ood.evaluation.entities import OUTSIDE
from hf_early_ood.languages import base_language
from hf_early_ood.names import QUESTION_ANSWERING, SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION
from hf_early_ood.sources import SplitSpec

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class SplitInfo:
    """How the examples of a split are to be judged.

    Attributes:
        label_names: Label of each class id of the split: those of training, unless ``coarse`` is given or the choices
            are more or fewer. Empty for question answering.
        coarse: For each class id of training that of this split, where its labels are coarser; else ``None``.
        language: ISO 639 code of the texts without script and region; ``None``: not told.
    """

    label_names: tuple[str, ...]
    coarse: tuple[int, ...] | None = None
    language: str | None = None


@dataclass(frozen=True, eq=False)
class Splits(Mapping[str, Dataset]):
    """Data sets by split name: ``train``, ``id_validation``, ``id_test``, ``ood/<name>``.

    Attributes:
        datasets: Split -> ``Dataset`` with a column for each role of the task.
        label_names: Label of each class id in training; empty for question answering.
        info: Split -> how its examples are to be judged.
        report: Counts, fingerprints, near-duplicates.
    """

    datasets: dict[str, Dataset]
    label_names: tuple[str, ...]
    info: dict[str, SplitInfo]
    report: DataReport

    def __getitem__(self, split: str) -> Dataset:
        return self.datasets[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self.datasets)

    def __len__(self) -> int:
        return len(self.datasets)

    @property
    def evaluation(self) -> dict[str, Dataset]:
        """All splits but train."""
        return {split: dataset for split, dataset in self.datasets.items() if split != names.TRAIN}


def load_splits(
    *,
    train: SplitSpec,
    id_test: SplitSpec,
    id_validation: SplitSpec | None = None,
    ood: Mapping[str, SplitSpec] | None = None,
    task: str = SEQUENCE_CLASSIFICATION,
    columns: Columns | None = None,
    label_names: Sequence[str] | None = None,
    seed: int = 0,
    leave_out_blank: bool = False,
    drop_near_duplicates: bool = False,
) -> Splits:
    """Load all splits of a run, with the labels of train, and look for leaks between them.

    All problems of all splits are reported together.

    Near-duplicates are found by the words of all that the model reads: of pairs both texts, of questions the question
    and its context, of choices all of them. So two questions about one long paragraph count: the model has read it.

    Args:
        train: Training set; its labels are the vocabulary.
        id_test: Test set of the training distribution.
        id_validation: For choices made during training; ``None``: nothing is chosen.
        ood: Name -> test set of another distribution.
        task: Name of the task.
        columns: Role -> column, in every source that is not bundled; a set's own ``columns`` win.
        label_names: Label of each class id, where train does not say it right.
        seed: Seed of the sub-sampling.
        leave_out_blank: Leave out examples in which a text that the model reads is missing or blank, and count them.
        drop_near_duplicates: Drop training examples that are nearly the same as one of any evaluation split. They are
            counted either way. Evaluation sets are never touched.

    Returns:
        Splits by name, with a report.

    Raises:
        DataError: If any split has a problem, if there are fewer than two labels, or if no training example is left.

    Example:
        >>> def tweets(split):
        ...     return SplitSpec("bundled:vader-icwsm2014", split="tweets/" + split)
        >>> splits = load_splits(train=tweets("train"), id_test=tweets("id_test"))
        >>> list(splits), splits.report.train_near_duplicates
        (['train', 'id_test'], 0)
    """
    specs = {names.TRAIN: train}
    if id_validation is not None:
        specs[names.ID_VALIDATION] = id_validation
    specs[names.ID_TEST] = id_test
    specs |= {names.ood(name): spec for name, spec in (ood or {}).items()}
    for split in (names.TRAIN, names.ID_VALIDATION):
        if split in specs and specs[split].coarse_labels:
            raise DataError(
                f"{split} cannot have coarse labels: training needs its own.", fix="Leave coarse_labels out, or rename."
            )

    loaded: dict[str, Loaded] = {}
    problems: dict[str, DataError] = {}
    for split, spec in specs.items():
        known = None if label_names is None else tuple(label_names)
        if names.TRAIN in loaded:
            known = loaded[names.TRAIN].label_names
        elif known is None:
            # Without a usable train there is no vocabulary: the other splits are still checked by themselves.
            spec = replace(spec, coarse_labels=None)
        try:
            loaded[split] = read_split(
                spec,
                task=task,
                columns=columns,
                vocabulary=Vocabulary(known),
                training=split == names.TRAIN,
                leave_out_blank=leave_out_blank,
                seed=seed,
            )
        except DataError as error:
            problems[split] = error
    _refuse_problems(problems, specs)
    vocabulary = loaded[names.TRAIN].label_names
    if len(vocabulary) < 2 and task != QUESTION_ANSWERING:
        raise DataError("The training set has fewer than two labels.", got=", ".join(vocabulary), allowed="2 or more")

    datasets = {split: part.dataset for split, part in loaded.items()}
    info = {split: _info(specs[split], part, vocabulary) for split, part in loaded.items()}
    near_train, leaked = _leaks(datasets)
    if drop_near_duplicates:
        datasets[names.TRAIN] = _without(datasets[names.TRAIN], leaked)
    elif leaked:
        logger.warning(
            f"{len(leaked)} training examples are near-duplicates of evaluation examples; they are kept "
            "(drop_near_duplicates=True drops them)."
        )
    reports = {
        split: SplitReport(
            source=asdict(specs[split]),
            num_examples=len(dataset),
            label_counts=label_counts(dataset),
            fingerprint=fingerprint(dataset),
            near_duplicates=near_train[split],
            duplicates=exact_duplicates(dataset),
            findings=loaded[split].findings,
        )
        for split, dataset in datasets.items()
    }
    _check_seen(task, reports, info)
    _tell(reports)
    _tell_shared(datasets)
    _tell_findings({split: report.findings for split, report in reports.items()})
    report = DataReport(
        splits=reports,
        near_duplicate_threshold=DEFAULT_THRESHOLD,
        train_near_duplicates=len(leaked),
        train_dropped=len(leaked) if drop_near_duplicates else 0,
        seed=seed,
    )
    return Splits(datasets, vocabulary, info, report)


def load_test_splits(
    specs: Mapping[str, SplitSpec],
    *,
    task: str = SEQUENCE_CLASSIFICATION,
    columns: Columns | None = None,
    vocabulary: Vocabulary,
    leave_out_blank: bool = False,
    drop_near_duplicates: bool = False,
    seed: int = 0,
) -> tuple[dict[str, Dataset], dict[str, SplitInfo], dict[str, dict[str, int]]]:
    """Load sets to judge a model that exists already, so that its labels come from the model.

    Args:
        specs: Split -> where its examples are; of train, too, where it is wanted.
        task: Name of the task.
        columns: As in `load_splits`.
        vocabulary: The labels of the model.
        leave_out_blank: As in `load_splits`.
        drop_near_duplicates: As in `load_splits`; without train, there are none to drop.
        seed: Seed of the sub-sampling.

    Returns:
        Split -> examples; split -> how they are to be judged; split -> what was noticed, and how often.

    Raises:
        DataError: Naming what is wrong with each split.
    """
    loaded: dict[str, Loaded] = {}
    problems: dict[str, DataError] = {}
    for split, spec in specs.items():
        try:
            loaded[split] = read_split(
                spec,
                task=task,
                columns=columns,
                vocabulary=vocabulary,
                leave_out_blank=leave_out_blank,
                seed=seed,
            )
        except DataError as error:
            problems[split] = error
    _refuse_problems(problems, specs)
    info = {split: _info(specs[split], part, vocabulary.names or ()) for split, part in loaded.items()}
    findings = {split: part.findings for split, part in loaded.items()}
    datasets = {split: part.dataset for split, part in loaded.items()}
    if drop_near_duplicates and names.TRAIN in datasets:
        datasets[names.TRAIN] = _without(datasets[names.TRAIN], _leaks(datasets)[1])
    _tell_findings(findings)
    _tell_shared(datasets)
    return datasets, info, findings


def _refuse_problems(problems: Mapping[str, DataError], specs: Mapping[str, SplitSpec]) -> None:
    """Raise what is wrong with all splits as one error, if anything is."""
    if problems:
        lines = [f"{split} ({specs[split]}): {error}" for split, error in problems.items()]
        raise DataError("\n".join(["The data is not usable.", *lines])) from next(iter(problems.values()))


def _info(spec: SplitSpec, part: Loaded, vocabulary: Sequence[str]) -> SplitInfo:
    coarse = coarser(vocabulary, spec.coarse_labels)[1] if spec.coarse_labels else None
    return SplitInfo(part.label_names, coarse, None if spec.language is None else base_language(spec.language))


def _leaks(datasets: Mapping[str, Dataset]) -> tuple[dict[str, int], set[int]]:
    """Per split: examples close to train; and the training examples that are close to any of them."""
    train_texts = joined_texts(datasets[names.TRAIN])
    near_train: dict[str, int] = {}
    leaked: set[int] = set()
    for split, dataset in datasets.items():
        if split == names.TRAIN:
            near_train[split] = 0
            continue
        pairs = near_duplicates(train_texts, joined_texts(dataset))
        near_train[split] = len({pair.right for pair in pairs})
        leaked |= {pair.left for pair in pairs}
    return near_train, leaked


def _without(train: Dataset, leaked: set[int]) -> Dataset:
    """The training examples but for some, in their order."""
    kept = [position for position in range(len(train)) if position not in leaked]
    if not kept:
        raise DataError(
            "Every training example is a near-duplicate of an evaluation example.",
            got=f"{len(leaked)} examples",
            fix="Check that train and the evaluation splits are not the same data.",
        )
    return train.select(kept) if leaked else train


def _check_seen(task: str, reports: Mapping[str, SplitReport], info: Mapping[str, SplitInfo]) -> None:
    """Refuse labels and tags that no training example has, and sets of tagged words without an entity."""
    if task not in (SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION):
        return
    trained = [count > 0 for count in reports[names.TRAIN].label_counts.values()]
    for split, report in reports.items():
        if task == TOKEN_CLASSIFICATION and set(filter(report.label_counts.get, report.label_counts)) <= {OUTSIDE}:
            raise DataError(
                f"{split} has no entities, so that nothing can be found in it.",
                got=f"{report.num_examples} examples, all words of which are {OUTSIDE}",
                fix="Check the column of the tags, raise max_examples, or leave the set out.",
            )
        own, coarse = info[split].label_names, info[split].coarse
        ids = range(len(trained)) if coarse is None else coarse
        seen = {own[index] for index, there in zip(ids, trained, strict=True) if there}
        unseen = [name for name, count in report.label_counts.items() if count and name not in seen]
        if unseen:
            raise DataError(
                f"{split} has labels that training never saw.",
                got=", ".join(unseen),
                allowed=", ".join(sorted(seen)),
                fix="Add training examples of them, or leave them out of the set.",
            )


def _tell(reports: Mapping[str, SplitReport]) -> None:
    """Say what was noticed."""
    for split, report in reports.items():
        if report.duplicates and split != names.TRAIN:
            logger.warning(f"{split}: {report.duplicates} examples repeat an earlier one exactly; they are kept.")
        unanswered = report.label_counts.get(WITHOUT_ANSWER, 0)
        if unanswered and reports[names.TRAIN].label_counts.get(WITHOUT_ANSWER) == 0:
            logger.warning(f"{split}: {unanswered} questions have no answer, and training has none of that kind.")


def _tell_shared(datasets: Mapping[str, Dataset]) -> None:
    """Warn of evaluation sets that have examples in common: what counts twice, or is not out of distribution."""
    texts = {split: set(joined_texts(dataset)) for split, dataset in datasets.items() if split != names.TRAIN}
    for first, second in combinations(texts, 2):
        shared = len(texts[first] & texts[second])
        if shared:
            logger.warning(f"{second}: {shared} of {len(texts[second])} examples are also in {first}.")


def _tell_findings(findings: Mapping[str, Mapping[str, int]]) -> None:
    for split, counts in findings.items():
        for finding, count in counts.items():
            logger.warning(f"{split}: {count} {finding}.")

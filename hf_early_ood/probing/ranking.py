"""Sources for a target, ranked before anything is trained: what ``hf-early-ood similarity`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_early_ood import names
from hf_early_ood.atomic import plain, write_json
from hf_early_ood.environment import capture_environment, timestamp
from hf_early_ood.errors import named
from hf_early_ood.folders import check_replaceable, writing
from hf_early_ood.probes.transfer import TransferScores
from hf_early_ood.probing.candidates import Candidate, Material, SimilarityRequest
from hf_early_ood.similarities import FROM_SCRATCH, RankedSource, Score, SimilarityRecord

logger = logging.get_logger(__name__)


def rank_sources(
    request: SimilarityRequest,
    *,
    output: str | Path | None = None,
    device: torch.device | str = "cpu",
    command: str = "",
) -> SimilarityRecord:
    """Rank sources by what fine-tuning from them on few examples of a target is predicted to leave.

    See `hf_early_ood.probes.transfer` for the scores and for what they cannot know. The few examples are drawn anew
    ``draws`` times, the same for all sources.

    Args:
        request: What is asked for.
        output: Folder for ``similarity.json``; None: nothing is written.
        device: Where models run.
        command: What the user typed, for the record.

    Returns:
        The sources, best first.

    Raises:
        ResumeError: The output folder holds something else.
        EarlyOODError: Whatever is wrong with settings, data or models.
    """
    started, folder = timestamp(), None if output is None else Path(output)
    if folder is not None:
        check_output(folder)
    material = Material.read(request)
    draws = few_examples(len(material.target), request)
    scored: list[tuple[Candidate, list[TransferScores]]] = []
    count = len(material.data) or len(material.models)
    for candidate in tqdm(
        material.candidates(torch.device(device)), total=count, unit="source", disable=None, leave=False
    ):
        with named(f"source {candidate.source}"):
            scores = [candidate.target.score(candidate.weights, rows, ridge=request.ridge) for rows in draws]
        scored.append((candidate, scores))
    _warn_of_noise([candidate for candidate, _ in scored])
    record = SimilarityRecord(
        request=plain(request),
        target=request.target,
        num_examples=len(material.target),
        labels=material.labels,
        ranked_by=request.rank_by,
        sources=_ranked(scored, request.rank_by),
        environment=plain(capture_environment(device=str(device))),
        command=command,
        started=started,
        finished=timestamp(),
    )
    if folder is not None:
        with writing(folder):
            write_json(folder / names.SIMILARITY_FILE, record)
    return record


def check_output(folder: Path) -> None:
    """Make sure that a folder is free, or holds a similarity, which is replaced.

    Raises:
        ConfigurationError: It cannot be written.
        ResumeError: It holds something else.
    """
    check_replaceable(folder, names.SIMILARITY_FILE, "similarity")


def few_examples(count: int, request: SimilarityRequest) -> list[list[int]]:
    """The examples of each draw, of as many as the target has."""
    generator = torch.Generator().manual_seed(request.seed)
    return [torch.randperm(count, generator=generator)[: request.few].tolist() for _ in range(request.draws)]


def _warn_of_noise(candidates: Sequence[Candidate]) -> None:
    """Say where the order means nothing."""
    blind = [one for one in candidates if one.target.teacher.explained <= 0]
    if blind:
        features = "the features" if len(blind) == len(candidates) else ", ".join(one.source for one in blind)
        logger.warning(
            f"On {features}, a linear model of the target tells its labels no better than a guess, so that scores and"
            " order mean nothing. Check the labels, or give more examples of the target."
        )


def _ranked(scored: Sequence[tuple[Candidate, list[TransferScores]]], measure: str) -> tuple[RankedSource, ...]:
    lowest = [min(draw) for draw in zip(*([one.scores[measure] for one in all_] for _, all_ in scored), strict=True)]
    found = [candidate.name for candidate, _ in scored]
    ranked = [
        RankedSource(
            name=candidate.name if found.count(candidate.name) == 1 else candidate.source,
            source=candidate.source,
            scores={
                name: _score([one.scores[name] for one in draws]) for name in draws[0].scores if name != FROM_SCRATCH
            },
            from_scratch=_score([one.scores[FROM_SCRATCH] for one in draws]),
            first=fmean(one.scores[measure] <= low for one, low in zip(draws, lowest, strict=True)),
            error_before=candidate.error_before,
            target_explained=candidate.target.teacher.explained,
            explained=candidate.explained,
            num_examples=candidate.num_examples,
            layer=candidate.layer,
            num_features=len(candidate.target.mean),
            cumulated={
                name: tuple(torch.stack([one.cumulated[name] for one in draws]).mean(0).tolist())
                for name in draws[0].cumulated
            },
        )
        for candidate, draws in scored
    ]
    return tuple(sorted(ranked, key=lambda source: source.scores[measure].mean))


def _score(values: Sequence[float]) -> Score:
    return Score(fmean(values), stdev(values) if len(values) > 1 else None)

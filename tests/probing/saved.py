"""Saved models for the tests: a tiny training with its checkpoints, a classifier with a tokenizer beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_early_ood.probing import ProbeRequest
from hf_early_ood.sources import SplitSpec
from tests.tiny_project import make_project, sentences, write_rows

# Small, and the settings of the cheap measures.
SMALL = {"size": 8, "batch_size": 4}
CHEAP = {
    "average_sharpness": {"num_draws": 2},
    "worst_case_sharpness": {"steps": 2},
    "hessian_trace": {"num_products": 6},
    "gauss_newton_trace": {"num_products": 6},
    "hessian_top_eigenvalue": {"num_products": 4},
    "gradient_subspace_overlap": {"num_products": 4},
}


def make_checkpoints(folder: Path, *, steps: tuple[int, ...] = (2, 10, 4), **config: Any) -> Path:
    """A project with texts in ``train.jsonl`` and classifiers, each with other weights, in ``out/checkpoint-*``."""
    make_project(folder)
    for step in steps:
        save_classifier(folder / "model", folder / "out" / f"checkpoint-{step}", seed=step, **config)
    return folder


def save_classifier(encoder: Path, target: Path, *, seed: int = 0, tokenizer: bool = True, **config: Any) -> Path:
    """The encoder with a random head, all weights moved a little."""
    names = config.pop("label_names", ["bad", "good"])
    settings = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}, **config}
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    model.save_pretrained(target)
    if tokenizer:
        AutoTokenizer.from_pretrained(encoder).save_pretrained(target)
    return target


def request(folder: Path, model: str | Path = "out", data: str = "train.jsonl", **changes: Any) -> ProbeRequest:
    return ProbeRequest(str(folder / model), SplitSpec(str(folder / data)), **{**SMALL, **changes})


__all__ = ["CHEAP", "SMALL", "make_checkpoints", "request", "save_classifier", "sentences", "write_rows"]

"""Models and batches of every task, for the tests of the Fisher trace."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests import families

# Every family here has a class for the task. Sequence classification is tested on all families elsewhere.
TASKS: dict[str, tuple[str, ...]] = {
    "regression": ("albert", "bert", "gpt2", "t5"),
    "multi_label": ("albert", "bert", "llama", "bart"),
    "token_classification": (
        *("albert", "bert", "convbert", "deberta-v2", "distilbert", "electra", "funnel", "gpt2", "llama"),
        *("modernbert", "mpnet", "roberta", "t5", "xlm"),
    ),
    "question_answering": (
        *("albert", "bart", "bert", "bloom", "distilbert", "electra", "llama", "mobilebert", "modernbert"),
        *("mpnet", "roberta", "t5"),
    ),
    "multiple_choice": ("albert", "bert", "deberta-v2", "distilbert", "electra", "funnel", "modernbert", "xlm"),
    "masked_lm": ("albert", "bert", "distilbert", "electra", "mobilebert", "modernbert", "mpnet", "roberta", "xlm"),
    "causal_lm": ("bart", "bloom", "gemma2", "gpt2", "gpt_neox", "llama", "opt", "qwen2"),
    "seq2seq_lm": ("bart", "mbart", "t5"),
}
PAIRS = [(task, family) for task, several in TASKS.items() for family in several]
CASES = {"regression": {"problem_type": "regression"}, "multi_label": {"problem_type": "multi_label_classification"}}


def build(task: str, family: str = "bert", **overrides: object) -> nn.Module:
    """Tiny model of a task in float64."""
    kind = "sequence_classification" if task in CASES else task
    return families.build(family, task=kind, **CASES.get(task, {}), **overrides).double()  # type: ignore[arg-type]


def inputs(task: str, model: nn.Module, batch: int = 3, length: int = 7, seed: int = 0) -> dict[str, Tensor]:
    """Batch with labels. Masked models predict some positions; the choices of an example differ."""
    family = type(model).__name__.partition("For")[0].lower()
    family = {"funnel": "funnel", "bart": "bart", "mbart": "mbart", "t5": "t5"}.get(family, "bert")
    tensors = families.inputs(family, model, batch, length, seed)
    generator = torch.Generator().manual_seed(seed)
    if task == "regression":
        tensors["labels"] = torch.randn(batch, families.NUM_LABELS, generator=generator)
    elif task == "multi_label":
        tensors["labels"] = torch.randint(2, (batch, families.NUM_LABELS), generator=generator).float()
    elif task == "multiple_choice":
        ids = tensors["input_ids"]
        words = torch.randint(families.FIRST_WORD, families.VOCAB_SIZE, ids.shape, generator=generator)
        tensors["input_ids"] = torch.where(ids == families.PAD, ids, words)
    elif task == "masked_lm":
        tensors["labels"][torch.rand(tensors["labels"].shape, generator=generator) < 0.5] = -100
        tensors["labels"][:, 0] = tensors["input_ids"][:, 0]
    return tensors

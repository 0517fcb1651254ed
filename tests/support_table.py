"""Write recipes/accelerate/README.md from the parameter lists of the tests, or check that it is up to date.

python -m tests.support_table [--check]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_early_ood.atomic import write_text
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from tests.distributed import worker
from tests.distributed.fsdp2_worker import STATE_DICTS
from tests.distributed.test_fsdp2 import SCENARIOS as SHARDED
from tests.integration import kill_worker, test_setups
from tests.test_sharding import SPLIT_OTHERWISE

PAGE = Path(__file__).parents[1] / "recipes" / "accelerate" / "README.md"
# What the names of the scenarios with FSDP2 stand for.
SHARDED_WORDS = {
    "at_load": "a model that transformers shards while it is loaded, automatic interval",
    "top_down": "from the top, evaluation, best model at the end",
    "accumulated": "gradient accumulation",
    "bottom_up": "from the bottom, evaluation",
    "lora": "LoRA",
    "auto": "automatic interval: the Fisher trace on gathered layers",
    "bf16": "bfloat16 mixed precision",
    "dynamics": "`EarlyDynamicsCallback` with all measures",
    "checkpointed": "activation checkpointing of FSDP",
    "selected": "layers in the order of their Fisher trace",
    "lisa": "`LISACallback`",
}
INTRODUCTION = """\
# Launchers and setups

<!-- Written by python -m tests.support_table from the parameter lists of the tests; edit those. -->

One YAML file for each kind of machine is in this folder, with its command in the header. What follows is tested with
two processes on the CPU (gloo); on GPUs (NCCL) it was not run.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the page is not up to date")
    if parser.parse_args().check:
        return 0 if PAGE.read_text(encoding="utf-8") == page() else 1
    write_text(PAGE, page())
    return 0


def page() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *supported(), "", *refused(), ""])


def supported() -> list[str]:
    rows = [("DistributedDataParallel", ddp(*scenario)) for scenario in worker.SCENARIOS.values()]
    rows += [("FSDP2", SHARDED_WORDS[name]) for name in SHARDED]
    rows += [("FSDP2", f"resumed from a checkpoint with `{kind}`") for kind in STATE_DICTS]
    rows += [
        ("another number of processes", "begun on one and resumed on two, and the other way round"),
        *(("optimizer", f"`optim={name!r}`") for name in test_setups.OPTIMIZERS),
        *(
            ("optimizer", f"`optim={name!r}`, where {module} is installed")
            for name, module in test_setups.OPTIONAL_OPTIMIZERS.items()
        ),
        ("optimizer", "`torch.optim.Muon` for matrices with AdamW for the rest"),
        *(("mixed precision", f"`{name}=True`") for name in test_setups.PRECISIONS),
        ("torch.compile", "every stage compiled; the recompile limit is raised for as long as training lasts"),
        *(("PEFT", f"{name}; `disable_adapter` and `set_adapter` in between") for name in test_setups.ADAPTERS),
        *(("killed and resumed", killed(parts)) for parts in kill_worker.SCENARIOS.values()),
        ("killed and resumed", "`hf-early-ood run` and `study`, at any file that they touch"),
    ]
    return [
        "## What is supported",
        "",
        "With DistributedDataParallel and FSDP2 the weights are those of one process on the same global batch, frozen"
        " layers do not move and released ones do. Killed at any moment, training ends bit for bit as if it had not"
        " been.",
        "",
        *table(("setup", "tested with"), dict.fromkeys(rows)),
    ]


def ddp(callback: str, accumulation: int, lora: bool, arguments: Mapping[str, Any]) -> str:
    """A scenario of two processes in words."""
    made = worker.CALLBACKS[callback]
    words = [] if made.func is GradualUnfreezingCallback else [f"`{made.func.__name__}`"]
    words += [settings(made.keywords, ("interval", "order")), f"accumulation {accumulation}"]
    words += ["LoRA"] if lora else []
    words += [settings(arguments)] if arguments else []
    return ", ".join(words)


def killed(parts: Mapping[str, Any]) -> str:
    words = [f"`{parts['staged'].__name__}`"] if "staged" in parts else []
    words += [settings(parts["unfreezing"], ("interval", "order", "release", "tolerance"))]
    words += [f"`LearningRatesCallback` with {settings(parts['rates'])}"] if "rates" in parts else []
    words += [f"`EarlyDynamicsCallback` with {', '.join(parts['dynamics']['measures'])}"] if "dynamics" in parts else []
    if "arguments" in parts:
        words.append(
            settings(parts["arguments"], ("gradient_accumulation_steps", "load_best_model_at_end", "save_steps"))
        )
    return ", ".join(words)


def settings(values: Mapping[str, Any], keys: Iterable[str] | None = None) -> str:
    return ", ".join(f"`{key}={values[key]!r}`" for key in (keys or values) if key in values)


def refused() -> list[str]:
    rows = [(settings(arguments), why) for arguments, why in worker.REFUSED.values()]
    rows += [(what, why) for what, (_, why, _) in SPLIT_OTHERWISE.items()]
    rows += [
        ("DeepSpeed", "ZeRO fills the missing gradients of frozen layers with zeros; weight decay would move them"),
        ("FSDP2 around a compiled model", "its parameters cannot be gathered for the self-check and the measurements"),
        (
            "an optimizer that works layer by layer in the backward pass",
            "the Trainer holds an empty one: which layers it would move cannot be seen",
        ),
        (
            "reentrant activation checkpointing, however it was switched on",
            "the lowest layer that trains has no gradient, or frozen layers save nothing",
        ),
        ("an optimizer that moves frozen layers", "stopped after the first update, by the bits of the frozen weights"),
    ]
    return [
        "## What is refused",
        "",
        "Before the first update, with an error that says what to change.",
        "",
        *table(("setup", "why"), rows),
    ]


def table(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> list[str]:
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {first} | {second} |" for first, second in rows)]


if __name__ == "__main__":
    sys.exit(main())

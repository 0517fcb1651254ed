"""Started by torchrun on every rank: trains and measures each scenario and saves what came out, rank by rank."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from transformers import TrainerCallback, set_seed

from hf_early_ood.callbacks.learning_rates import LearningRatesCallback
from hf_early_ood.callbacks.refreezing import AutoFreezeCallback, LISACallback
from hf_early_ood.callbacks.rewrapping import ddp_of
from hf_early_ood.callbacks.staged import StagedCallback
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.errors import UnsupportedSetupError
from hf_early_ood.trainer import EarlyOODArguments, EarlyOODTrainer
from tests import families
from tests.distributed import drifts, records
from tests.test_trainer import GradientOfFirstUpdate
from tests.training import Rows, StopAfter, make_trainer, outcome

GLOBAL_BATCH = 8
AUTO = {
    "interval": "auto",
    "probe_every": 1,
    "probe_size": 8,
    "probe_batch_size": 4,
    "window": 1,
    "tolerance": 1e9,
    "transient": 1,
    "max_step": 3,
}
AUTO_DECISION = 2
CALLBACKS: dict[str, partial[StagedCallback]] = {
    "fixed": partial(GradualUnfreezingCallback, interval=2),
    "auto": partial(GradualUnfreezingCallback, **AUTO),
    "auto_decision_fixed": partial(GradualUnfreezingCallback, interval=AUTO_DECISION, self_check=False),
    "selected": partial(GradualUnfreezingCallback, interval=2, order="fisher_trace", probe_size=14, probe_batch_size=4),
    "lisa": partial(LISACallback, interval=2, num_groups=1, seed=1, optimizer_state="reset"),
    "settled": partial(AutoFreezeCallback, interval=2),
}
REWRAP = {"ddp_rewrap": True}
# What a user who re-wraps would set: nothing has to be searched for.
REWRAP_FAST = {**REWRAP, "ddp_find_unused_parameters": False}
CHECKPOINTING = {"activation_checkpointing": True}
COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
# Callback, accumulation, LoRA, and further arguments.
SCENARIOS: dict[str, tuple[str, int, bool, dict[str, Any]]] = {
    "fixed 1": ("fixed", 1, False, {}),
    "fixed 2": ("fixed", 2, False, {}),
    "fixed 1 rewrap": ("fixed", 1, False, REWRAP_FAST),
    "fixed 2 rewrap": ("fixed", 2, False, REWRAP_FAST),
    "fixed 2 rewrap with search": ("fixed", 2, False, REWRAP),
    "fixed 2 checkpointing": ("fixed", 2, False, {**CHECKPOINTING, "ddp_find_unused_parameters": True}),
    "fixed 2 checkpointing rewrap": ("fixed", 2, False, {**CHECKPOINTING, **REWRAP}),
    "fixed 2 lora": ("fixed", 2, True, {}),
    "fixed 2 lora rewrap": ("fixed", 2, True, REWRAP_FAST),
    "auto 1": ("auto", 1, False, {}),
    "auto 2": ("auto", 2, False, {}),
    "auto 2 rewrap": ("auto", 2, False, REWRAP_FAST),
    "auto_decision_fixed 1": ("auto_decision_fixed", 1, False, {}),
    "auto_decision_fixed 2": ("auto_decision_fixed", 2, False, {}),
    "auto_decision_fixed 2 rewrap": ("auto_decision_fixed", 2, False, REWRAP_FAST),
    "fixed 2 compiled": ("fixed", 2, False, COMPILED),
    "fixed 2 compiled rewrap": ("fixed", 2, False, {**COMPILED, **REWRAP_FAST}),
    "selected 1": ("selected", 1, False, {}),
    "lisa 2": ("lisa", 2, False, {}),
    "lisa 2 rewrap": ("lisa", 2, False, REWRAP_FAST),
    "settled 2": ("settled", 2, False, {}),
    "settled 2 rewrap": ("settled", 2, False, REWRAP_FAST),
}
# What is interrupted after which update, and in which folder.
MID_STAGE, BEFORE_DECISION = ("fixed 2 rewrap", 5), ("auto 2", AUTO_DECISION - 1)
PARTS, BEGUN_ON_ONE = "parts", "begun_on_one"
WITH_RATES = "auto 2 rewrap"
RATES = {"layer_decay": 0.5, "release_warmup": 2, "release_state": "reset", "switch_factor": 0.1, "switch_at": "auto"}
_REENTRANT = {**CHECKPOINTING, "activation_checkpointing_kwargs": {"use_reentrant": True}}
# Arguments, and what the error says.
_WAITS = "waits for the gradients of frozen layers, which never come"
_STATIC = "A static DDP graph cannot follow layers that are released during training"
_TWICE = "Reentrant activation checkpointing marks a parameter ready twice under DDP with frozen layers"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "find_unused": ({"ddp_find_unused_parameters": False}, _WAITS),
    "checkpointing": (CHECKPOINTING, _WAITS),
    "static_graph": ({"ddp_static_graph": True}, _STATIC),
    "static_graph rewrap": ({"ddp_static_graph": True, **REWRAP}, _STATIC),
    "reentrant": ({**_REENTRANT, "ddp_find_unused_parameters": True}, _TWICE),
    "reentrant rewrap": ({**_REENTRANT, **REWRAP}, _TWICE),
}


class Counting(EarlyOODTrainer):
    """Keeps the bytes of every all-reduce of gradients since the last stage began, where it re-wraps."""

    def __init__(self, *positional: Any, **kwargs: Any) -> None:
        super().__init__(*positional, **kwargs)
        self.reduced: list[list[int]] = []

    def _rewrap(self) -> None:
        super()._rewrap()
        self.reduced.append([])
        ddp = ddp_of(self.model_wrapped)
        if ddp is not None:
            ddp.register_comm_hook(self.reduced[-1], _count)


# DDP reads the annotations, so that they cannot be words.
def _count(sizes, bucket):
    sizes.append(bucket.buffer().numel() * bucket.buffer().element_size())
    return allreduce_hook(None, bucket)


class TouchBuffer(TrainerCallback):
    """Write the rank into a buffer; DDP makes it rank 0's in the next forward pass."""

    def on_step_begin(self, args, state, control, model, **kwargs):
        if state.global_step == 3:
            dict(model.named_buffers())[buffer_of(model)].fill_(float(args.process_index))


def buffer_of(model: torch.nn.Module) -> str:
    (name,) = [name for name, _ in model.named_buffers() if name.endswith("touched")]
    return name


def model_without_dropout(lora: bool = False) -> torch.nn.Module:
    set_seed(5)
    model = families.build("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model.register_buffer("touched", torch.zeros(1), persistent=False)
    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False)) if lora else model


def trainer_for(folder: Path, name: str, callbacks: list[TrainerCallback], **more: Any) -> Counting:
    """A Trainer whose global batch does not depend on the number of processes."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    callback, accumulation, lora, arguments = SCENARIOS[name]
    trainer = make_trainer(
        folder / name,
        [CALLBACKS[callback](), TouchBuffer(), *callbacks],
        model=model_without_dropout(lora),
        trainer_class=Counting,
        arguments_class=EarlyOODArguments,
        eval_dataset=Rows(16),
        intervention="standard",  # the callback is given
        per_device_train_batch_size=GLOBAL_BATCH // world // accumulation,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-3,
        eval_strategy="steps",
        eval_steps=3,
        **arguments,
        **more,
    )
    assert isinstance(trainer, Counting)
    return trainer


def result(trainer: Counting, gradient: Any = None) -> dict[str, Any]:
    callback = trainer.unfreezing
    assert callback is not None
    events = [record for record in callback.records if record.get("event") == "stage"]
    return {
        "outcome": outcome(trainer),
        "gradient": gradient,
        "decision": callback.decision.step if callback.decision else None,
        "stages": [(event["step"], event["stage"]) for event in events],
        "changes": [(event["released"], event.get("frozen", [])) for event in events],
        "records": [record for record in callback.records if "measure" in record],
        "bytes": [4 * event["trainable_parameters"] for event in events],
        "reduced": trainer.reduced,
        "eval_loss": [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry],
        "touched": float(trainer.model.get_buffer(buffer_of(trainer.model))),
    }


def train(folder: Path, name: str) -> dict[str, Any]:
    recorder = GradientOfFirstUpdate()
    trainer = trainer_for(folder, name, [recorder])
    trainer.train()
    return result(trainer, recorder.gradient)


def train_with_rates(folder: Path) -> dict[str, Any]:
    """With a learning rate of its own for every layer group."""
    rates = LearningRatesCallback(**RATES)
    trainer = trainer_for(folder / "rates", WITH_RATES, [rates])
    trainer.train()
    return {**result(trainer), "rates": rates.records}


def interrupt(folder: Path, name: str, step: int) -> None:
    """Train up to an update, with a checkpoint."""
    trainer_for(folder, name, [StopAfter(step)]).train()


def resume(folder: Path, name: str, step: int) -> dict[str, Any]:
    """Train on from where another Trainer was interrupted, perhaps on another number of processes."""
    trainer = trainer_for(folder, name, [])
    trainer.train(resume_from_checkpoint=str(folder / name / f"checkpoint-{step}"))
    return result(trainer)


def train_again_without_the_callback(folder: Path) -> dict[str, Any]:
    """The same Trainer: what its first training has never released must be averaged in the second."""
    trainer = trainer_for(folder / "again", "fixed 1 rewrap", [], max_steps=3)
    trainer.train()
    trainer.remove_callback(trainer.unfreezing)
    before = outcome(trainer)
    trainer.train()
    return {"before": before, "after": outcome(trainer)}


def refusals(folder: Path) -> dict[str, str]:
    """The message of every combination that must be refused before the first update."""
    messages = {}
    for name, (arguments, _) in REFUSED.items():
        trainer = make_trainer(
            folder / name,
            [GradualUnfreezingCallback(interval=2)],
            trainer_class=EarlyOODTrainer,
            arguments_class=EarlyOODArguments,
            intervention="standard",
            **arguments,
        )
        try:
            trainer.train()
            messages[name] = f"trained {trainer.state.global_step} updates"
        except UnsupportedSetupError as error:
            messages[name] = f"update {trainer.state.global_step}: {error}"
    return messages


def main() -> None:
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    results: dict[str, Any] = {name: train(folder, name) for name in SCENARIOS}
    interrupt(folder / PARTS, *MID_STAGE)
    results["in two parts"] = resume(folder / PARTS, *MID_STAGE)
    results["begun on one"] = resume(folder / BEGUN_ON_ONE, *BEFORE_DECISION)
    results["rates"] = train_with_rates(folder)
    results["again"] = train_again_without_the_callback(folder)
    results["refused"] = refusals(folder)
    results["drifts"] = drifts.all_of_them(folder)
    results["measured"] = records.all_of_them()
    results["failed"] = records.failures()
    torch.save(results, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main()

"""Started on every rank: trains each scenario, under FSDP2 where there are several ranks, and saves what came out.

What is not run here: NCCL, streams of a GPU, and the branch of ``AcceleratorState`` that enters FSDP on GPUs only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from peft import LoraConfig, TaskType, get_peft_model
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModelForSequenceClassification,
    DistributedConfig,
    PreTrainedModel,
    TrainerCallback,
    set_seed,
)

from hf_early_ood.callbacks.dynamics import EarlyDynamicsCallback
from hf_early_ood.callbacks.refreezing import AutoFreezeCallback, LISACallback
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.cli import main as run_command
from hf_early_ood.errors import UnsupportedSetupError
from hf_early_ood.trainer import EarlyOODTrainer
from tests import families
from tests.distributed.worker import AUTO
from tests.training import Rows, StopAfter, make_trainer

GLOBAL_BATCH = 8
INTERVAL = 2
STOPPED_AT = 5
STATE_DICTS = ("FULL_STATE_DICT", "SHARDED_STATE_DICT")
MEASURES = ("fisher_trace", "average_sharpness", "worst_case_sharpness", "hessian_trace")
# After an evaluation some parameters stay gathered.
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": Rows(8)}
BEST = {**EVALUATED, "save_strategy": "steps", "save_steps": 5, "load_best_model_at_end": True}
WORLD = int(os.environ.get("WORLD_SIZE", "1"))


def let_accelerate_shard_on_cpu() -> None:
    """Do for processes on the CPU what ``AcceleratorState`` does for those on GPUs only; the rest is accelerate's."""
    original = AcceleratorState.__init__

    def init(self: Any, *arguments: Any, fsdp_plugin: Any = None, **rest: Any) -> None:
        original(self, *arguments, fsdp_plugin=fsdp_plugin, **rest)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = self.distributed_type

    AcceleratorState.__init__ = init  # type: ignore[method-assign]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


class Updates(TrainerCallback):
    """Whole weights after every update, what had a gradient before it, and how many parameters were sharded."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.with_gradient: dict[int, list[str]] = {}
        self.num_sharded = 0

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.num_sharded = sum(isinstance(parameter, DTensor) for parameter in model.parameters())
        self._keep(state, model)

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.with_gradient[state.global_step] = [named(n) for n, p in model.named_parameters() if p.grad is not None]

    def on_step_end(self, args, state, control, model, **kwargs):
        self._keep(state, model)

    def _keep(self, state, model):
        self.weights[state.global_step] = {named(name): whole(p) for name, p in model.named_parameters()}


def named(name: str) -> str:
    """A name without what FSDP's activation checkpointing puts into it."""
    return name.replace("_checkpoint_wrapped_module.", "")


def make_model(lora: bool) -> PreTrainedModel:
    set_seed(5)
    model: Any = families.build("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    if lora:
        model = get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["query", "value"]))
    return model


def train(
    folder: Path,
    *callbacks: TrainerCallback,
    model: PreTrainedModel | None = None,
    lora: bool = False,
    accumulation: int = 1,
    resume: bool = False,
    fsdp_config: dict[str, Any] | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """One training; without dropout, so that one process and two can be compared."""
    updates = Updates()
    if WORLD > 1 and model is None:
        # With the default, accelerate 1.15 shards the embeddings of BERT twice, and fails.
        config = {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"], **(fsdp_config or {})}
        arguments = {"fsdp": True, "fsdp_config": config, **arguments}
    trainer = make_trainer(
        folder,
        [*callbacks, updates],
        model=make_model(lora) if model is None else model,
        trainer_class=EarlyOODTrainer,
        per_device_train_batch_size=GLOBAL_BATCH // WORLD // accumulation,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-3,
        **arguments,
    )
    trainer.train(resume_from_checkpoint=resume or None)
    records = [record for callback in callbacks for record in getattr(callback, "records", [])]
    decisions = [callback.decision for callback in callbacks if isinstance(callback, GradualUnfreezingCallback)]
    return {
        "num_sharded": updates.num_sharded,
        "weights": updates.weights,
        "with_gradient": updates.with_gradient,
        "measured": [record for record in records if "measure" in record],
        "stages": [(r["step"], r["released"]) for r in records if r.get("event") == "stage"],
        "decision": decisions[0].step if decisions and decisions[0] else None,
        "frozen_at_end": [n for n, p in trainer.model.named_parameters() if not p.requires_grad],
        "final": {named(name): whole(parameter) for name, parameter in trainer.model.named_parameters()},
    }


def unfreezing(**settings: Any) -> GradualUnfreezingCallback:
    return GradualUnfreezingCallback(**{"interval": INTERVAL, **settings})


def sharded_at_load(folder: Path) -> PreTrainedModel:
    """A model that transformers shards while it is loaded, with nothing of accelerate; whole in one process."""
    state, saved = PartialState(cpu=True), folder / "saved"
    set_seed(5)
    families.build("llama").save_pretrained(saved)  # by the first rank only
    state.wait_for_everyone()
    arguments = {"distributed_config": DistributedConfig(fsdp_size=WORLD)} if WORLD > 1 else {}
    return AutoModelForSequenceClassification.from_pretrained(saved, **arguments)


def scenarios(folder: Path) -> dict[str, Any]:
    dynamics = EarlyDynamicsCallback(MEASURES, every=8, probe_size=8, probe_batch_size=4)
    from_below = unfreezing(order="bottom_up", initial=["embeddings"])
    return {
        # First: accelerate keeps in the environment that it has sharded.
        "at_load": train(folder / "0", unfreezing(**AUTO), model=sharded_at_load(folder)),
        "top_down": train(folder / "1", unfreezing(), **BEST),
        "accumulated": train(folder / "2", unfreezing(), accumulation=2),
        "bottom_up": train(folder / "3", from_below, **EVALUATED),
        "lora": train(folder / "4", unfreezing(), lora=True),
        "auto": train(folder / "5", unfreezing(**AUTO)),
        "bf16": train(folder / "6", unfreezing(**AUTO), bf16=True),
        "dynamics": train(folder / "7", unfreezing(), dynamics),
        "checkpointed": train(folder / "8", unfreezing(**AUTO), fsdp_config={"activation_checkpointing": True}),
        "selected": train(folder / "9", unfreezing(order="fisher_trace", probe_size=8, probe_batch_size=4)),
        "lisa": train(folder / "10", lisa()),
    }


def lisa() -> LISACallback:
    return LISACallback(interval=INTERVAL, num_groups=1, seed=1, optimizer_state="reset")


def resumed(folder: Path, kind: str, callback: Callable[[], TrainerCallback]) -> dict[str, Any]:
    config = {"fsdp_config": {"state_dict_type": kind}}
    train(folder, callback(), StopAfter(STOPPED_AT), **config)
    return train(folder, callback(), resume=True, **config)


def refused(folder: Path, callback: TrainerCallback, **arguments: Any) -> str:
    """The message of what must be refused."""
    try:
        train(folder, callback, **arguments)
    except UnsupportedSetupError as error:
        return str(error)
    return "trained"


def main() -> None:
    torch.set_num_threads(1)
    let_accelerate_shard_on_cpu()
    if sys.argv[1] == "run":
        sys.exit(run_command(sys.argv[1:]))
    folder, rank = Path(sys.argv[1]), os.environ.get("RANK", "0")
    results = scenarios(folder)
    if WORLD > 1:
        results |= {kind: resumed(folder / kind, kind, lambda: unfreezing(**AUTO)) for kind in STATE_DICTS}
        results |= {f"lisa {kind}": resumed(folder / f"lisa {kind}", kind, lisa) for kind in STATE_DICTS}
        sharded = {"state_dict_type": "SHARDED_STATE_DICT"}
        results["best refused"] = refused(folder / "best", unfreezing(), fsdp_config=sharded, **BEST)
        results["attempts refused"] = refused(folder / "attempts", unfreezing(), auto_find_batch_size=True)
        results["sums refused"] = refused(folder / "sums", AutoFreezeCallback(interval=INTERVAL))
    torch.save(results, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main()

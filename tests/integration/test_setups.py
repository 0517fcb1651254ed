"""Optimizers, precisions, compilation and adapters: frozen layers stay where they are, released ones train."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, TaskType, get_peft_model
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.utils import counters
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer
from transformers.training_args import ParallelMode

from hf_early_ood.callbacks import staged
from hf_early_ood.callbacks.setups import check_launcher
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.errors import UnsupportedSetupError
from hf_early_ood.layers import find_layer_groups
from tests import families
from tests.training import Recorder, Rows, make_trainer

# Updates of a stage; the blocks of the tiny model are three.
INTERVAL = 2
ORDER = ["head", "block.2", "block.1", "block.0", "embeddings"]

OPTIMIZERS = ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"]
# Name and the module that it needs; tested where that is installed.
OPTIONAL_OPTIMIZERS = {
    "adamw_torch_8bit": "torchao",
    "adamw_8bit": "bitsandbytes",
    "lion_32bit": "bitsandbytes",
    "paged_adamw_8bit": "bitsandbytes",
    "ademamix": "bitsandbytes",
    "schedule_free_adamw": "schedulefree",
    "stable_adamw": "optimi",
    "galore_adamw": "galore_torch",
    "apollo_adamw": "apollo_torch",
    "grokadamw": "grokadamw",
    "lomo": "lomo_optim",
}
PRECISIONS = ["bf16", "fp16"]


def moved_by_stage(recorder: Recorder, model: nn.Module) -> list[set[str]]:
    """Layer groups of which anything moved while a stage trained."""
    groups = find_layer_groups(model)
    stages = []
    for begin in range(0, INTERVAL * len(ORDER), INTERVAL):
        before, after = recorder.weights[begin], recorder.weights[begin + INTERVAL]
        stages.append({groups.group_of(name) for name in before if not torch.equal(before[name], after[name])})
    return stages


def expected_stages() -> list[set[str]]:
    return [set(ORDER[: stage + 1]) for stage in range(len(ORDER))]


def needing(name: str, module: str) -> Any:
    """A case that is left out where a module is not installed."""
    missing = find_spec(module) is None
    projected = {"optim_target_modules": ["attention"]} if name in ("galore_adamw", "apollo_adamw") else {}
    return pytest.param({"optim": name, **projected}, marks=pytest.mark.skipif(missing, reason=f"needs {module}"))


@pytest.mark.parametrize(
    "arguments",
    [
        *({"optim": name} for name in OPTIMIZERS),
        *({name: True} for name in PRECISIONS),
        *(needing(name, module) for name, module in OPTIONAL_OPTIMIZERS.items()),
    ],
)
def test_frozen_layers_stay_with_every_optimizer_and_precision(tmp_path: Path, arguments: dict[str, Any]) -> None:
    recorder = Recorder()
    trainer = make_trainer(tmp_path, [GradualUnfreezingCallback(interval=INTERVAL), recorder], **arguments)
    trainer.train()
    assert moved_by_stage(recorder, trainer.model) == expected_stages()


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for matrices and AdamW for the rest, as those who train with Muon do."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
        others = [parameter for parameter in model.parameters() if parameter.dim() != 2]
        self.parts = [torch.optim.Muon(matrices, lr=lr, weight_decay=0.1), torch.optim.AdamW(others, lr=lr)]
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> None:
        for part in self.parts:
            part.step()


def test_frozen_layers_stay_with_muon(tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = make_trainer(tmp_path, [GradualUnfreezingCallback(interval=INTERVAL), recorder])
    trainer.optimizer = MuonAndAdamW(trainer.model, lr=1e-2)
    trainer.train()
    assert moved_by_stage(recorder, trainer.model) == expected_stages()


def test_an_optimizer_that_works_in_the_backward_pass_is_refused(tmp_path: Path) -> None:
    """GaLore's and APOLLO's layerwise ones: what the Trainer holds of them has no parameters."""
    trainer = make_trainer(tmp_path, [GradualUnfreezingCallback(interval=INTERVAL)])
    trainer.optimizer = LayerWiseDummyOptimizer(optimizer_dict={})
    with pytest.raises(UnsupportedSetupError, match=r"layer by layer.*57 of 57 missing.*none of the layerwise ones"):
        trainer.train()


# However it is asked for; PyTorch takes the reentrant kind where nothing is said.
REENTRANT = [{"use_reentrant": True}, {"preserve_rng_state": True}]


@pytest.mark.parametrize("kwargs", REENTRANT)
@pytest.mark.parametrize("where", ["model", "arguments"])
def test_reentrant_checkpointing_is_refused_wherever_it_was_switched_on(
    tmp_path: Path, where: str, kwargs: dict[str, bool]
) -> None:
    """The lowest layer that trains would have no gradient: nothing but the head would train, up to the last stage."""
    model = families.build("bert")
    arguments: dict[str, Any] = {"activation_checkpointing": True, "activation_checkpointing_kwargs": kwargs}
    if where == "model":
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
        arguments = {}
    trainer = make_trainer(tmp_path, [GradualUnfreezingCallback(interval=INTERVAL)], model=model, **arguments)
    fix = "Call model.activation" if where == "model" else "Set activation"
    with pytest.raises(UnsupportedSetupError, match=f"Reentrant activation checkpointing needs gradients.*{fix}"):
        trainer.train()


def test_checkpointing_of_the_model_itself_keeps_the_stages(tmp_path: Path) -> None:
    model, recorder = families.build("bert"), Recorder()
    model.activation_checkpointing_enable()
    make_trainer(tmp_path, [GradualUnfreezingCallback(interval=INTERVAL), recorder], model=model).train()
    assert moved_by_stage(recorder, model) == expected_stages()


@pytest.mark.parametrize(
    ("kwargs", "arguments", "message"),
    [
        (None, {}, r"waits for the gradients of frozen layers.*activation checkpointing \(which switches"),
        ({"use_reentrant": True}, {"ddp_find_unused_parameters": True}, "marks a parameter ready twice"),
    ],
)
def test_ddp_sees_checkpointing_of_the_model_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kwargs: Any, arguments: dict[str, Any], message: str
) -> None:
    """The Trainer looks at the model, too, when it decides whether to search for unused parameters."""
    trainer = make_trainer(tmp_path, [], **arguments)
    trainer.model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
    monkeypatch.setattr(TrainingArguments, "parallel_mode", ParallelMode.DISTRIBUTED)
    with pytest.raises(UnsupportedSetupError, match=message):
        check_launcher(trainer.args, trainer.model)


class ZeroFilling(torch.optim.AdamW):
    """Takes missing gradients for zeros, as ZeRO does: weight decay moves what is frozen."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        super().step(closure)


def test_an_optimizer_that_moves_frozen_layers_is_stopped(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, [GradualUnfreezingCallback(interval=INTERVAL)])
    trainer.optimizer = ZeroFilling(trainer.model.parameters(), lr=1e-2, weight_decay=0.1)
    with pytest.raises(UnsupportedSetupError, match=r"update 1 .*frozen .*moved.*weight decay"):
        trainer.train()
    assert trainer.state.global_step == 1


def test_every_stage_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for the stages the limit of PyTorch is hit; with it, it is not, and it is put back."""

    def train() -> None:
        torch._dynamo.reset()
        counters.clear()
        make_trainer(
            tmp_path,
            [GradualUnfreezingCallback(interval=1)],
            model=families.build("bert", num_hidden_layers=2),
            torch_compile=True,
            torch_compile_backend="eager",
            max_steps=4,
            eval_strategy="steps",
            eval_steps=1,
            eval_dataset=Rows(4),
        ).train()

    # Not monkeypatch: it takes the settings of torch away when it is done.
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        train()
        assert counters["frames"]["ok"] >= 4
        assert torch._dynamo.config.recompile_limit == 2
        monkeypatch.setattr(staged, "recompilation_allowed", lambda stages: lambda: None)
        with pytest.raises(FailOnRecompileLimitHit):
            train()
    torch._dynamo.reset()


ADAPTERS = {
    "lora": lambda: LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["query", "value"], r=2),
    "dora": lambda: LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["query"], r=2, use_dora=True),
    "ia3": lambda: IA3Config(
        task_type=TaskType.SEQ_CLS, target_modules=["key", "output.dense"], feedforward_modules=["output.dense"]
    ),
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters_are_released_layer_by_layer(tmp_path: Path, adapter: str) -> None:
    """What is not of the adapter stays frozen for good; evaluation with the adapter switched off changes no flag."""
    recorder = Recorder()
    model = get_peft_model(families.build("bert"), ADAPTERS[adapter]())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    def without_adapter(prediction: Any) -> dict[str, float]:
        with model.disable_adapter():  # lets all of the adapter require a gradient when it ends
            pass
        return {}

    trainer = make_trainer(
        tmp_path,
        [GradualUnfreezingCallback(interval=INTERVAL), recorder],
        model=model,
        compute_metrics=without_adapter,
        eval_strategy="steps",
        eval_steps=1,
        eval_dataset=Rows(4),
        max_steps=8,
    )
    groups = find_layer_groups(model).trainable()
    trainer.train()
    for step in range(1, 9):
        before, after = recorder.weights[step - 1], recorder.weights[step]
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved <= trained
        stage = ORDER[: (step - 1) // INTERVAL + 1]
        assert {groups.group_of(name) for name in moved} == set(stage) & set(groups.names)

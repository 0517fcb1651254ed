"""LISA and AutoFreeze in any Trainer: groups that trained are frozen, again and again or for good."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_early_ood import names
from hf_early_ood.callbacks.measuring import from_main_process
from hf_early_ood.callbacks.staged import StagedCallback
from hf_early_ood.checks import check_choice, check_number
from hf_early_ood.errors import ConfigurationError
from hf_early_ood.schedules import LayerSampling, PrefixFreezing, Schedule, settled_prefix

OPTIMIZER_STATES = ("keep", "reset")
_SUM = "gradient_sum"  # in the optimizer's state of a parameter


class LISACallback(StagedCallback):
    """Train a few randomly drawn blocks at a time, and draw anew every few updates, in any ``Trainer``.

    LISA (Pan et al. 2024, arXiv 2403.17919): embeddings and head train all the time, because in LoRA their weights
    move most; of the blocks between, ``num_groups`` are drawn uniformly every ``interval`` updates, and the others are
    frozen. In the source it approaches full fine-tuning of language models at the memory of LoRA. It was made for memory and
    for training quality, not for other domains: here it is a way of treating layers that has nothing to do with the
    early period, to compare with. Cost: forward pass, and the backward pass down to the lowest group that trains:
    with the embeddings among those that always train, the activations' backward pass goes through all blocks, and only
    the weight gradients of frozen blocks are saved.

    Freezing, checks and checkpoints are those of :class:`~hf_early_ood.GradualUnfreezingCallback`.

    Args:
        interval: K, updates between two draws (int), or a fraction of training (float).
        num_groups: gamma, groups that are drawn.
        always: Groups that always train; None: embeddings and head, as far as the model has them.
        seed: Of the draws. They depend on it and on the number of the draw alone.
        optimizer_state: "keep": the moments of a frozen block wait until it is drawn again, as in the authors'
            callback. "reset": they are dropped when the block is frozen, which also frees their memory.
        self_check: As for GradualUnfreezingCallback.
        check_ranks: Likewise.
        dynamics_file: Likewise.

    Raises:
        ConfigurationError: A setting is not usable (at once, or before the first update).
        UnsupportedSetupError: The launcher cannot do it correctly, before the first update.
        ResumeError: The checkpoint belongs to other settings.

    Example:
        >>> LISACallback(interval=20, num_groups=2).settings["optimizer_state"]
        'keep'
    """

    def __init__(
        self,
        interval: int | float = 20,
        num_groups: int = 2,
        *,
        always: Sequence[str] | None = None,
        seed: int = 0,
        optimizer_state: str = "keep",
        self_check: bool = True,
        check_ranks: bool = True,
        dynamics_file: str | None = names.DYNAMICS_FILE,
    ) -> None:
        if isinstance(always, str):
            raise ConfigurationError("always is a list of group names.", got=repr(always), fix=f"Write [{always!r}].")
        check_choice("optimizer_state", optimizer_state, OPTIMIZER_STATES)
        settings = {
            "interval": interval,
            "num_groups": num_groups,
            "always": None if always is None else list(always),
            "seed": seed,
            "optimizer_state": optimizer_state,
            "self_check": self_check,
            "check_ranks": check_ranks,
            "dynamics_file": dynamics_file,
        }
        super().__init__(settings)
        # Everything but the group names, which need the model.
        some = num_groups if isinstance(num_groups, int) else 1
        LayerSampling(
            [*(always or ()), *map(str, range(some))], interval=interval, num_groups=num_groups, always=always
        )

    def _make_schedule(self, groups: tuple[str, ...], total_updates: int) -> LayerSampling:
        keys = ("interval", "num_groups", "always", "seed")
        schedule = LayerSampling(groups, **{key: self.settings[key] for key in keys})
        return schedule.resolve(total_updates=total_updates)


class AutoFreezeCallback(StagedCallback):
    r"""Freeze layers from the bottom for good as their gradients settle, in any ``Trainer``.

    AutoFreeze (Liu et al. 2021, arXiv 2102.01386): everything trains at first; at the end of every interval the
    gradients that each group has summed up in it are compared with those of the interval before,
    :math:`\eta = |G_{i-1} - G_i| / G_{i-1}` with :math:`G = \lVert \sum_t g_t \rVert_1`, and the groups below the
    first one whose :math:`\eta` reaches the ``percentile`` of all are frozen. Made for speed (the source claims up to
    2.55x at equal accuracy); it goes the other way round than gradual unfreezing, whose control it is here.

    The sums are kept in the optimizer's state, one number for each trained parameter, so that checkpoints hold them:
    memory like that of one more moment, until a group is frozen. They are of the gradients that the optimizer gets,
    after clipping; updates that a gradient scaler skips do not count. The top group is never frozen.

    Freezing, checks and checkpoints are those of :class:`~hf_early_ood.GradualUnfreezingCallback`.

    Args:
        interval: Updates between two looks (int), or a fraction of training (float); 0.1, as in the source, looks ten
            times.
        percentile: Of the changes; groups that change less than it are settled.
        self_check: As for GradualUnfreezingCallback.
        check_ranks: Likewise.
        dynamics_file: Likewise.

    Raises:
        ConfigurationError: A setting is not usable (at once, or before the first update).
        UnsupportedSetupError: The launcher cannot do it correctly, before the first update.
        ResumeError: The checkpoint belongs to other settings.

    Example:
        >>> AutoFreezeCallback(interval=50).settings["percentile"]
        50.0
    """

    def __init__(
        self,
        interval: int | float = 0.1,
        percentile: float = 50.0,
        *,
        self_check: bool = True,
        check_ranks: bool = True,
        dynamics_file: str | None = names.DYNAMICS_FILE,
    ) -> None:
        check_number("percentile", percentile)
        if percentile > 100:
            raise ConfigurationError("percentile is not usable.", got=repr(percentile), allowed="above 0, at most 100")
        settings = {
            "interval": interval,
            "percentile": float(percentile),
            "self_check": self_check,
            "check_ranks": check_ranks,
            "dynamics_file": dynamics_file,
        }
        super().__init__(settings)
        PrefixFreezing(("one", "two"), interval=interval)  # raises
        self._norms: dict[str, float] = {}  # G of the interval before, by group

    def _make_schedule(self, groups: tuple[str, ...], total_updates: int) -> PrefixFreezing:
        return PrefixFreezing(groups, interval=self.settings["interval"]).resolve(total_updates=total_updates)

    def _prepare(self, *parts: Any, saved: Mapping[str, Any] | None, **others: Any) -> None:
        self._norms = {} if saved is None else dict(saved["norms"])

    def learned(self) -> dict[str, Any] | None:
        """What a checkpoint must hold; None before training."""
        learned = super().learned()
        return None if learned is None else {**learned, "norms": dict(self._norms)}

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Add the gradients of this update, after the step: optimizers set up their state in the first one."""
        optimizer = kwargs["optimizer"]
        if self._run is None or getattr(optimizer, "step_was_skipped", False):
            return
        for parameters in self._run.freezer.managed.values():
            for parameter in parameters.values():
                if parameter.grad is None:
                    continue
                own = optimizer.state[parameter]
                if _SUM in own:
                    own[_SUM].add_(parameter.grad)
                else:
                    own[_SUM] = parameter.grad.detach().clone()

    def _select(self, schedule: Schedule, model: nn.Module, state: TrainerState) -> Sequence[str]:
        """The groups that have settled; none at the first look, which has nothing to compare with."""
        run = self._run
        if run is None:
            raise RuntimeError("a selection outside of training")
        before, self._norms = self._norms, {}
        for name in schedule.trainable_in(run.stage):
            parameters = run.freezer.managed[name].values()
            self._norms[name] = math.fsum(_taken_norm(run.optimizer.state[parameter]) for parameter in parameters)
        change = {name: _change(before.get(name), self._norms[name]) for (name,) in schedule.candidates()}
        settled = list(settled_prefix(change, self.settings["percentile"])) if before else []
        per_group = {name: value if math.isfinite(value) else None for name, value in change.items()}
        record = {
            "step": state.global_step,
            "measure": f"{names.SELECTION}/{schedule.select}",
            "value": None,
            "per_group": per_group if before else {},
            "trainable": list(schedule.trainable_in(run.stage)),
        }
        run.log.append(from_main_process(record))
        return from_main_process(settled)


def _taken_norm(state: dict[str, Any]) -> float:
    """L1 norm of the gradients summed up for one parameter, which begin anew."""
    total: Tensor | None = state.pop(_SUM, None)
    if total is None:
        return 0.0
    norm = total.float().abs().sum()
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _change(before: float | None, now: float) -> float:
    """eta; NaN, which never counts as settled, where there was no gradient before."""
    return abs(before - now) / before if before else math.nan

"""Weights of layer groups perturbed after k updates, in any Trainer: what had training brought about by then?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from hf_early_ood import names
from hf_early_ood.callbacks.dynamics_log import DynamicsLog
from hf_early_ood.callbacks.measuring import from_main_process
from hf_early_ood.callbacks.reporting import ReportingCallback
from hf_early_ood.callbacks.resumable import check_same
from hf_early_ood.callbacks.setups import check_shards, check_step
from hf_early_ood.checks import OPTIMIZER_STATES, RESET, check_choice, check_count, check_flags, check_number
from hf_early_ood.config.perturbations import (
    ALL,
    KINDS,
    MATRICES,
    PARAMETERS,
    START,
    TENSOR,
    UNITS,
    WITHIN,
    PerturbationConfig,
    faults,
)
from hf_early_ood.errors import ConfigurationError, EarlyOODError, UnsupportedSetupError
from hf_early_ood.freezing import frozen_by
from hf_early_ood.interventions.forgetting import initial_values, without_norms
from hf_early_ood.interventions.perturbations import check_sources, effective_std, perturbed, seed_for
from hf_early_ood.layers import LayerGroups, find_layer_groups
from hf_early_ood.schedules.base import checked_names, in_updates
from hf_early_ood.schedules.orders import named_groups
from hf_early_ood.sharding import sharded_modules
from hf_early_ood.start_weights import check_start_weights, read_start_weights, write_start_weights

logger = logging.get_logger(__name__)

EVENT = "perturbation"
Chosen = dict[str, dict[str, nn.Parameter]]
"""Layer group -> name -> parameter, of what is perturbed."""
T = TypeVar("T")


class PerturbationCallback(ReportingCallback):
    """Perturb the weights of layer groups once, after k updates, and train on, in any ``Trainer``.

    Frankle, Schwab & Morcos 2020 (arXiv 2002.10365) and Zhang, Bengio & Singer 2019 (arXiv 1902.01996); what is theirs,
    and what of it could not be checked, is in `hf_early_ood.interventions.perturbations`. The kinds, of w, the weights
    after k updates:

    * ``reset_to_start``: those with which training began: pretrained ones, and of a new head its random ones.
    * ``reset_to_random``: new ones from the model's own initializer (PEFT's for LoRA).
    * ``redraw_magnitudes``: the signs of w with other magnitudes: those at the start of the same weights ("start") or
      of the tensor in random order ("start_shuffled"), or those that the initializer draws ("initializer").
    * ``redraw_signs``: the magnitudes of w with fair random signs ("random") or those at the start ("start").
    * ``shuffle``: w in other places, within a tensor, an output unit ("row") or the group; with ``keep_signs`` only the
      magnitudes move.
    * ``noise``: w plus Gaussian noise of ``std`` times a ``unit``: the standard deviation of each tensor at the start,
      as initialized, or of its movement w - w_start, which is the effective standard deviation of a reset to the start.

    It happens before update k + 1; with k the number of updates of the training, at the end of the last one, before its
    checkpoint. So a checkpoint after k updates holds the weights as they were trained, and one after the last update
    the perturbed ones. A measurement after k updates, the last one too, is of the weights as they were trained: in a
    plain ``Trainer``, this callback comes after an `EarlyDynamicsCallback`.

    What is perturbed is what the model trains: of a LoRA model its adapters, whose start is that of the adapters, and
    tied weights once. The event "perturbation" in the dynamics file and ``early_ood/perturbation/<group>`` in the log
    say the effective standard deviation, the standard deviation of w' - w over the weights of the group that were
    perturbed.

    A resumed training is bit-identical to one that was not stopped. Kinds that need the start write it to
    ``_perturbation/start.safetensors`` in the output folder before the first update; a checkpoint from before update k
    needs that file beside it. Layers that are frozen are refused: one that waits is at its start.

    Cost: a file of the size of the groups, where the start is needed; at update k, copies of one group on the CPU.

    Args:
        at: k, completed updates (int from 0 on), or fraction of training (float; 1.0: after the last update).
        kind: One of the above.
        groups: Names of the layer groups, as in a schedule: "block.3", "block.-1" for the top block, or a regular
            expression between slashes; None: all.
        parameters: "all" of their tensors, "without_norms", or "matrices": those of two dimensions or more.
        source: Of ``redraw_magnitudes`` and ``redraw_signs``; None: "start_shuffled" and "random".
        within: Of ``shuffle``: "tensor", "row" or "group".
        keep_signs: Of ``shuffle``.
        std: Of ``noise``.
        unit: Of ``noise``: "start", "initializer", "movement" or "absolute" (1).
        seed: Of the draws; None: that of the training (``args.seed``), so that the seeds of a study draw differently.
        optimizer_state: "reset": what the optimizer knows of perturbed weights begins anew, since moments of other
            weights say nothing about these. "keep": it stays.
        dynamics_file: File in ``args.output_dir`` for the event. None writes none.

    Raises:
        ConfigurationError: A setting is not usable (at once, or before the first update), or layers are being frozen.
        UnsupportedSetupError: The launcher or the optimizer does not let weights be set.
        UnsupportedModelError: There is no initializer for what is to be drawn.
        ResumeError: The checkpoint belongs to other settings, or the weights at the start are gone.

    Example:
        >>> callback = PerturbationCallback(at=0.05, kind="reset_to_start", groups=["block.10", "block.11"])
        >>> # Trainer(model=model, args=args, train_dataset=train, callbacks=[callback]).train()
    """

    def __init__(
        self,
        at: int | float,
        kind: str,
        groups: Sequence[str] | None = None,
        *,
        parameters: str = ALL,
        source: str | None = None,
        within: str = TENSOR,
        keep_signs: bool = False,
        std: float = 1.0,
        unit: str = START,
        seed: int | None = None,
        optimizer_state: str = RESET,
        dynamics_file: str | None = names.DYNAMICS_FILE,
    ) -> None:
        own = {
            "at": at,
            "kind": kind,
            "groups": None if groups is None else list(checked_names(groups, "groups")),
            "parameters": parameters,
            "source": source,
            "within": within,
            "keep_signs": keep_signs,
            "std": std,
            "unit": unit,
            "seed": seed,
            "optimizer_state": optimizer_state,
        }
        super().__init__({**own, "dynamics_file": dynamics_file})
        for key, value, choices in (
            ("kind", kind, KINDS),
            ("parameters", parameters, PARAMETERS),
            ("within", within, WITHIN),
            ("unit", unit, UNITS),
            ("optimizer_state", optimizer_state, OPTIMIZER_STATES),
        ):
            check_choice(key, value, choices)
        check_flags(keep_signs=keep_signs)
        check_number("std", std)
        if seed is not None:
            check_count("seed", seed, least=0)
        self.config = PerturbationConfig(**{**own, "groups": None if groups is None else tuple(groups)})  # type: ignore[arg-type]
        for key, what, got, allowed in faults(self.config):
            raise ConfigurationError(f"{key} {what}.", got=repr(got), allowed=allowed)
        self._at: int | None = None
        self._seed = 0
        self._is_done = False
        self._chosen: Chosen = {}
        self._file = Path()
        self._start: str | None = None  # hash of the file
        self._log: DynamicsLog | None = None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Refuse a second one as soon as there is a Trainer."""
        self._refuse_second(state)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Find groups and update; keep the start, or find it again; refuse what cannot be right."""
        self._refuse_second(state)
        model = kwargs["model"]
        _check_setup(args, model, kwargs["optimizer"])
        _refuse_freezing(model)
        self._at = moment(self.config, state.max_steps)
        self._seed = args.seed if self.config.seed is None else self.config.seed
        self._chosen = chosen(self.config, model)
        self._file = Path(str(args.output_dir)) / names.PERTURBATION_START_FILE
        saved = self._saved(state)
        if saved is None:
            check(self.config, model, self._chosen, self._seed)
            self._is_done, self._start = False, None
            if self.config.needs_start:
                flat = {name: p for parameters in self._chosen.values() for name, p in parameters.items()}
                self._start = self._by_main(lambda: write_start_weights(self._file, flat), state)
        else:
            planned = {key: saved[key] for key in self._plan()}
            check_same("perturbation", planned, self._plan())
            self._is_done, self._start = saved["is_done"], saved["start"]
            if self._start is not None and not self._is_done:
                digest = self._start
                self._by_main(lambda: check_start_weights(self._file, digest), state)
        self._log = self._open_log(args, state)
        self._log.replace([] if saved is None else saved["records"])
        self._announce(state)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Perturb before an update: no gradient exists at this point."""
        _refuse_freezing(kwargs["model"])  # by a callback that comes after this one
        if state.global_step == self._at:
            self._perturb(state, **kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Perturb after the last update, before its checkpoint: gradients are gone by now."""
        if state.global_step == self._at == state.max_steps:
            self._perturb(state, **kwargs)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Say so if it has not happened."""
        super().on_train_end(args, state, control, **kwargs)
        if not self._is_done:
            logger.warning(
                f"Training ended after {state.global_step} updates, the perturbation was due after {self._at}."
            )

    @property
    def records(self) -> list[dict[str, Any]]:
        """The event, once it has happened, as in the dynamics file."""
        return self._log.records if self._log else []

    def learned(self) -> dict[str, Any] | None:
        """What a checkpoint must hold: what is planned, whether it is done, and the hash of the start."""
        if self._log is None:
            return None
        done = {"is_done": self._is_done, "start": self._start, "records": list(self._log.records)}
        return {**self._plan(), **done}

    def _plan(self) -> dict[str, Any]:
        tensors = {group: list(parameters) for group, parameters in self._chosen.items()}
        return {"update": self._at, "seed": self._seed, "tensors": tensors}

    def _perturb(self, state: TrainerState, **kwargs: Any) -> None:
        if self._is_done:
            return
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        start: dict[str, Tensor] = {}
        if self._start is not None:
            digest = self._start
            start = self._by_main(lambda: read_start_weights(self._file, digest), state)
        stds = apply(self.config, model, self._chosen, self._seed, start)
        if self.config.optimizer_state == RESET:
            for parameters in self._chosen.values():
                for parameter in parameters.values():
                    optimizer.state.pop(parameter, None)
        self._is_done = True
        record = {"step": state.global_step, "event": EVENT, "kind": self.config.kind, "effective_std": stds}
        if self._log is not None:
            self._log.append(record)
        self._live(state).numbers({f"{names.LOG_PERTURBATION}/{group}": std for group, std in stds.items()})
        shown = ", ".join(f"{group} ({std:.3g})" for group, std in stds.items())
        logger.info(f"Update {state.global_step}: {self.config.kind}; effective standard deviation by group: {shown}.")

    def _by_main(self, work: Callable[[], T], state: TrainerState) -> T:
        """What the main process makes of a file; other processes may have no such folder."""
        found: Any = None
        if state.is_world_process_zero:
            try:
                found = work()
            except EarlyOODError as error:
                found = error
        found = from_main_process(found)
        if isinstance(found, EarlyOODError):
            raise found
        return found


def moment(config: PerturbationConfig, updates: int) -> int:
    """The update after which a perturbation comes in a training of this length.

    Raises:
        ConfigurationError: Training ends before.

    Example:
        >>> [moment(PerturbationConfig(at=at, kind="shuffle"), 80) for at in (0, 5, 0.05, 1.0)]
        [0, 5, 4, 80]
    """
    at: int = in_updates(config.at, updates)
    if at > updates:
        raise ConfigurationError(
            "The perturbation comes after training ends.",
            got=f"at={at}, training makes {updates} updates",
            fix="Lower at, give it as a fraction of training, or train longer.",
        )
    return at


def chosen(config: PerturbationConfig, model: nn.Module) -> Chosen:
    """The parameters that a perturbation changes, by layer group from the bottom up and by name.

    Args:
        config: Of the perturbation.
        model: The model, before anything is frozen.

    Raises:
        ConfigurationError: There is no such group, or nothing in it is of the kind that ``parameters`` says.
    """
    groups: LayerGroups = find_layer_groups(model).trainable()
    patterns = groups.names if config.groups is None else config.groups
    wanted = {name for pattern in patterns for name in named_groups(pattern, groups.names)}
    found: Chosen = {}
    for group in groups:
        if group.name in wanted:
            kept = dict(group.parameters) if config.parameters == ALL else without_norms(model, group.parameters)
            if config.parameters == MATRICES:
                kept = {name: parameter for name, parameter in kept.items() if parameter.ndim > 1}
            if not kept:
                raise ConfigurationError(
                    "There is nothing to perturb in a layer group.",
                    got=f"{group.name}, parameters={config.parameters!r}",
                    fix="Leave the group out, or set parameters='all'.",
                )
            found[group.name] = kept
    return found


def check(config: PerturbationConfig, model: nn.Module, groups: Chosen, seed: int) -> None:
    """Refuse, before the first update, what has no initializer and sources from which nothing can be taken.

    Args:
        config: Of the perturbation.
        model: The model, before training.
        groups: What is `chosen`.
        seed: Of the draws.

    Raises:
        EarlyOODError: It could not be done.
    """
    for group, parameters in groups.items():
        initial = _initial(config, model, group, parameters, seed)
        start = {name: parameter.detach().cpu() for name, parameter in parameters.items()} if config.needs_start else {}
        check_sources(config, start, initial)


def apply(
    config: PerturbationConfig, model: nn.Module, groups: Chosen, seed: int, start: Mapping[str, Tensor]
) -> dict[str, float]:
    """Perturb the parameters in place.

    Args:
        config: Of the perturbation.
        model: The model that holds them.
        groups: What is `chosen`.
        seed: Of the draws.
        start: All of their values before training, where they are needed.

    Returns:
        Layer group to effective standard deviation.
    """
    transposed = _transposed(model)
    stds = {}
    for group, parameters in groups.items():
        values = {name: parameter.detach().cpu() for name, parameter in parameters.items()}
        initial = _initial(config, model, group, parameters, seed)
        after = perturbed(
            config,
            values,
            seed,
            start={name: start[name] for name in values} if start else None,
            initial=initial,
            transposed={name for name, parameter in parameters.items() if id(parameter) in transposed},
        )
        stds[group] = effective_std(values, after)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(after[name])
    return stds


def _initial(
    config: PerturbationConfig, model: nn.Module, group: str, parameters: Mapping[str, nn.Parameter], seed: int
) -> dict[str, Tensor]:
    """What the initializer draws for a group, the same whatever other groups are drawn for."""
    if not config.needs_initializer:
        return {}
    return {name: value.detach() for name, value in initial_values(model, parameters, seed_for(seed, group)).items()}


def _transposed(model: nn.Module) -> set[int]:
    """Matrices of GPT-2's kind, whose output units are columns."""
    return {id(module.weight) for module in model.modules() if isinstance(module, Conv1D)}


def _refuse_freezing(model: nn.Module) -> None:
    if frozen_by(model) is not None:
        raise ConfigurationError(
            "A layer that waits frozen is at its start, and must not move.",
            got="PerturbationCallback together with a callback that freezes layers",
            fix="Leave one of them out.",
        )


def _check_setup(args: TrainingArguments, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    check_shards(model)
    if sharded_modules(model):
        raise UnsupportedSetupError(
            "Perturbations need whole weights.",
            got="FSDP2",
            allowed="one process, or DistributedDataParallel",
            fix="Launch without sharding.",
        )
    check_step(optimizer, ["ScheduleFree"])  # whose weights are not the model's; nor are those of DeepSpeed
    if args.load_best_model_at_end:
        raise ConfigurationError(
            "The best checkpoint may be one from before the perturbation.",
            got="load_best_model_at_end=True",
            fix="Set load_best_model_at_end=False: the weights after the last update are the outcome.",
        )

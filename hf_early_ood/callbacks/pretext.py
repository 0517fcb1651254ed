"""A pretext in a training: the first updates learn something else than the task."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from hf_early_ood import names
from hf_early_ood.callbacks.dynamics_log import DynamicsLog
from hf_early_ood.callbacks.intervening import InterveningCallback
from hf_early_ood.callbacks.resumable import check_same
from hf_early_ood.callbacks.setups import check_launcher, check_step
from hf_early_ood.checks import OPTIMIZER_STATES, RESET, check_choice, check_count, check_number
from hf_early_ood.config.interventions import PretextConfig
from hf_early_ood.errors import ConfigurationError, ResumeError, UnsupportedModelError, UnsupportedSetupError
from hf_early_ood.freezing import Freezer, frozen_by
from hf_early_ood.interventions.language_head import CHECKPOINT, LanguageHead, check_architecture
from hf_early_ood.interventions.learning_rates import checked_length
from hf_early_ood.interventions.pretext import (
    MASKED_LM,
    PRETEXTS,
    RANDOM_LABELS,
    SHUFFLED_TOKENS,
    TASKS_WITH_LABELS,
    Vocabulary,
    label_counts,
    no_mask,
    with_masked_tokens,
    with_random_labels,
    with_random_spans,
    with_shuffled_tokens,
)
from hf_early_ood.layer_rules import HEAD
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.schedules.base import checked_updates
from hf_early_ood.sharding import sharded_modules
from hf_early_ood.tasks.loading import task_of_model
from hf_early_ood.tasks.losses import is_single_label

logger = logging.get_logger(__name__)

EVENT = "pretext"

_PRECISIONS = ("no", "bf16")


class PretextCallback(InterveningCallback):
    """Train the first updates on random labels, on shuffled tokens, or on masked language modeling; then the task.

    Data dependence of the early phase: Frankle, Schwab & Morcos 2020 (arXiv 2002.10365), who use random labels, blurred
    images and self-supervision; **details not verified against the paper**. What each pretext does to a batch is in
    `hf_early_ood.interventions.pretext`. Needs :class:`~hf_early_ood.EarlyOODTrainer`.

    The first k updates (``updates``) are trained on the pretext, with the inputs of the training set, in its order; all
    others on the task. **They are part of the run**: a training of N updates makes N - k of the task, under one
    learning-rate schedule, whose warm-up falls on the pretext. So there are two comparisons. With standard fine-tuning
    of N updates, at the same cost: what do these k updates lose, or gain, against k of the task? With standard
    fine-tuning of N - k updates (``training.max_steps``): is the pretext better than not making them? For as many
    updates of the task as the baseline makes, which is the longer training of a pre-training, set ``max_steps`` of the
    arm with the pretext to N + k. Neither has exactly the learning rates of the other.

    *Random labels* and *shuffled tokens* change nothing but the batches: any launcher and every other intervention go
    with them, whose loss (label smoothing too) is the task's. The head of the task is trained on them.

    *Masked language modeling* trains everything but the head of the task (the layer group "head", with its pooler),
    which is frozen meanwhile: no gradient, no weight decay, no momentum. On the last hidden states there is the
    language head of the architecture (`LanguageHead`): weights from the checkpoint the model was made from, else new;
    the log and the event say which. Its loss is the mean over the masked tokens of the whole update, over accumulation
    and processes. Its own parameters have an optimizer of their own, of the class and the settings of the Trainer's, at
    the largest learning rate that trains now, no weight decay on vectors, and their gradient is clipped by itself at
    ``max_grad_norm``. At the switch it is thrown away; no saved model has it. Until then a checkpoint holds it in
    ``pretext.pt``. What measures meanwhile measures the task's loss, with a head that has not learned it.

    A resumed training is bit-identical to one that was not stopped, before, at and after the switch, and no random
    number of the training is used up: dropout and the order of examples are those of standard fine-tuning.

    Cost: random labels and shuffled tokens none that counts. An update of masked language modeling costs more by the
    logits of the masked tokens over the vocabulary.

    Args:
        kind: "random_labels" (classification of sequences, tokens and choices; question answering: random spans),
            "shuffled_tokens" (all but question answering, whose answers would be torn apart), or "masked_lm" (all
            tasks, encoders).
        updates: k, at least 1 (int), or a fraction of training (float in (0, 1)).
        seed: Of everything random about the pretext.
        mask_probability: Of a token to be masked, in (0, 1). For "masked_lm".
        optimizer_state: "reset": the task begins with a new optimizer, as a training that goes on from these weights.
            "keep": with the moments that the pretext has left.
        dynamics_file: File in ``args.output_dir`` for the events "pretext", at the beginning and at the end of it. None
            writes none.

    Raises:
        ConfigurationError: A setting is not usable, or another intervention cannot go with it; before the first update:
            the training is not longer than the pretext, or there is no tokenizer (``processing_class``) or mask token.
        UnsupportedModelError: Before the first update: the pretext does not fit the task or the architecture.
        UnsupportedSetupError: Before the first update: a plain Trainer; for masked_lm also sharded parameters, float16,
            or an optimizer that cannot be built a second time.
        DataError: Before the first update: the labels of the training set cannot be counted.
        ResumeError: The checkpoint was made without it, with other settings, or lacks its file.

    Example:
        >>> callback = PretextCallback("masked_lm", updates=0.1)
        >>> # EarlyOODTrainer(..., processing_class=tokenizer, callbacks=[callback]).train()
        >>> callback.settings["optimizer_state"]
        'reset'
    """

    def __init__(
        self,
        kind: str,
        *,
        updates: int | float = 0.1,
        seed: int = 0,
        mask_probability: float = 0.15,
        optimizer_state: str = RESET,
        dynamics_file: str | None = names.DYNAMICS_FILE,
    ) -> None:
        super().__init__(
            {
                "kind": kind,
                "updates": updates,
                "seed": seed,
                "mask_probability": mask_probability,
                "optimizer_state": optimizer_state,
                "dynamics_file": dynamics_file,
            }
        )
        check_choice("kind", kind, PRETEXTS)
        checked_updates(updates, "updates")
        check_count("seed", seed, least=0)
        check_number("mask_probability", mask_probability)
        if mask_probability >= 1:
            raise ConfigurationError(
                "mask_probability is not usable.", got=repr(mask_probability), allowed="a number above 0, less than 1"
            )
        if kind != MASKED_LM and mask_probability != PretextConfig.mask_probability:
            raise ConfigurationError(
                "mask_probability has no effect without masked language modeling.",
                got=f"{kind!r}, mask_probability={mask_probability!r}",
                fix="Leave it out.",
            )
        check_choice("optimizer_state", optimizer_state, OPTIMIZER_STATES)
        self._updates = 0
        self._change: Callable[[Mapping[str, Any], int], Mapping[str, Any]] | None = None
        self._head: LanguageHead | None = None
        self._optimizer: Optimizer | None = None  # of the language head
        self._freezer: Freezer | None = None
        self._checkpoint: Path | None = None  # that is being resumed
        self._log: DynamicsLog | None = None

    @property
    def records(self) -> list[dict[str, Any]]:
        """Events so far, as in the dynamics file."""
        return self._log.records if self._log else []

    def learned(self) -> dict[str, Any] | None:
        """What a checkpoint must hold: the events, the length of the pretext, and where the language head is from."""
        return None if self._log is None else {"updates": self._updates, "records": list(self._log.records)}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Refuse what cannot be right, and make ready what the pretext needs."""
        super().on_train_begin(args, state, control, **kwargs)
        model, checkpoint = kwargs["model"], self._checkpoint
        self._drop()
        self._updates = checked_length("updates", self.settings["updates"], state.max_steps)
        check_pretext(model, self.settings["kind"])
        saved = self._saved(state)
        if saved is not None:
            check_same("numbers of updates", saved["updates"], self._updates)
        self._log = self._open_log(args, state)
        self._log.replace([] if saved is None else saved["records"])
        # A checkpoint from the very switch was made before it.
        if state.global_step <= self._updates:
            self._change = self._changing(model, kwargs["train_dataloader"], kwargs.get("processing_class"))
            if self.settings["kind"] == MASKED_LM:
                self._add_head(args, model, kwargs["optimizer"], checkpoint if saved is not None else None)
        self._announce(state)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Begin the pretext, or go over to the task: no gradient exists at this point."""
        step, kind = state.global_step, self.settings["kind"]
        if self._head is not None and frozen_by(kwargs["model"]) is not self._freezer:
            raise ConfigurationError("Another callback freezes layers during masked language modeling.", fix=_ALONE)
        if step == 0:
            head = {} if self._head is None else {"language_head": self._head.origin}
            self._note(state, {"active": True, "updates": self._updates, **head})
            logger.info(f"The first {self._updates} of {state.max_steps} updates train on {kind}, not on the task.")
        elif step == self._updates:
            self._let_go()
            if self.settings["optimizer_state"] == RESET:
                kwargs["optimizer"].state.clear()
            self._note(state, {"active": False})

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Make the step of the language head, at the learning rate that the others have just had."""
        if self._head is None or self._optimizer is None or state.global_step >= self._updates:
            return
        own = list(self._head.parameters.values())
        for parameter in own:
            if parameter.grad is not None:
                parameter.grad = reduce(parameter.grad, "mean")  # as DistributedDataParallel does for the others
        if args.max_grad_norm > 0:
            nn.utils.clip_grad_norm_(own, args.max_grad_norm)
        groups = [group for group in kwargs["optimizer"].param_groups if any(p.requires_grad for p in group["params"])]
        rate = max(float(group["lr"]) for group in groups)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Give flags back, if training was stopped early."""
        super().on_train_end(args, state, control, **kwargs)
        self._let_go()

    def adapt_batch(self, batch: Mapping[str, Any], step: int) -> Mapping[str, Any]:
        """Make the batch of the pretext of one of the task, in the first updates."""
        return batch if self._change is None or step >= self._updates else self._change(batch, step)

    def loss_func(self, step: int) -> Callable[..., Tensor] | None:
        """The loss of masked language modeling, in the first updates."""
        return None if self._head is None or step >= self._updates else self._head.loss

    def save_to(self, checkpoint: Path) -> None:
        """Write the language head and its optimizer, as long as there are any."""
        if self._head is not None and self._optimizer is not None:
            held = {"head": self._head.state(), "optimizer": self._optimizer.state_dict()}
            torch.save(held, checkpoint / names.PRETEXT_FILE)

    def load_from(self, checkpoint: str | None) -> None:
        """Remember where the language head is."""
        self._checkpoint = None if checkpoint is None else Path(checkpoint)

    def _changing(
        self, model: Any, dataloader: Any, tokenizer: Any
    ) -> Callable[[Mapping[str, Any], int], Mapping[str, Any]]:
        """What makes the batch of the pretext, given that of the task and the completed updates."""
        kind, seed, pad = self.settings["kind"], self.settings["seed"], getattr(model.config, "pad_token_id", None)
        if kind == RANDOM_LABELS and task_of_model(model) in TASKS_WITH_LABELS:
            chooses = task_of_model(model) == names.MULTIPLE_CHOICE
            counts = label_counts(dataloader.dataset, None if chooses else model.config.num_labels)
            return lambda batch, step: with_random_labels(batch, counts, seed=seed, pad=pad)
        if tokenizer is None:
            raise ConfigurationError(
                f"{kind} must know which tokens are special.",
                got="a Trainer without a tokenizer",
                fix="Give the Trainer processing_class=tokenizer.",
            )
        words = Vocabulary.of(tokenizer)
        if kind == RANDOM_LABELS:
            return lambda batch, step: with_random_spans(batch, words, seed=seed, pad=pad)
        if kind == SHUFFLED_TOKENS:
            return lambda batch, step: with_shuffled_tokens(batch, words, seed=seed, pad=pad)
        if words.mask is None:
            raise no_mask()
        words = words.within(model.config.vocab_size)
        probability = self.settings["mask_probability"]
        return lambda batch, step: with_masked_tokens(
            batch, words, probability=probability, seed=seed, step=step, pad=pad
        )

    def _add_head(self, args: TrainingArguments, model: nn.Module, optimizer: Any, checkpoint: Path | None) -> None:
        """Put a language head on the model, with an optimizer of its own, and freeze the head of the task."""
        _check_setup(args, model, optimizer)
        if frozen_by(model) is not None:
            raise ConfigurationError("Another callback freezes layers.", fix=_ALONE)
        held = None if checkpoint is None else _read(checkpoint)
        self._head = LanguageHead(model, seed=self.settings["seed"], weights=held is None)
        self._optimizer = _optimizer_like(optimizer, self._head.parameters)
        if held is not None:
            self._head.load(held["head"])
            self._optimizer.load_state_dict(held["optimizer"])
        if held is None and self._head.origin != CHECKPOINT:
            logger.warning(f"The language head is {self._head.origin}: the checkpoint of the model lacks its weights.")
        groups = {group.name: group.parameters for group in find_layer_groups(model).trainable()}
        self._freezer = Freezer(groups, model, owner=self)
        self._freezer.train_only([name for name in groups if name != HEAD])

    def _let_go(self) -> None:
        """End the pretext, wherever it is."""
        if self._freezer is not None:
            self._freezer.restore()
        self._drop()

    def _drop(self) -> None:
        self._head = self._optimizer = self._freezer = self._change = self._checkpoint = None

    def _note(self, state: TrainerState, found: Mapping[str, Any]) -> None:
        self._live(state).numbers({names.LOG_PRETEXT: int(found["active"])})
        if self._log is not None:
            self._log.append({"step": state.global_step, "event": EVENT, "kind": self.settings["kind"], **found})


_ALONE = "Leave out gradual unfreezing, LISA and AutoFreeze, or take random_labels or shuffled_tokens."


def check_pretext(model: nn.Module, kind: str) -> None:
    """Refuse a pretext that does not fit the task or the architecture of a model.

    Args:
        model: It may be on the meta device.
        kind: One of `PRETEXTS`.

    Raises:
        UnsupportedModelError: It does not.
    """
    task, config = task_of_model(model), getattr(model, "config", None)
    if kind == MASKED_LM:
        check_architecture(model)
    known = (*TASKS_WITH_LABELS, names.QUESTION_ANSWERING)
    fits = known[:-1] if kind == SHUFFLED_TOKENS else known
    several = kind == RANDOM_LABELS and task == names.SEQUENCE_CLASSIFICATION and not is_single_label(config)  # type: ignore[arg-type]
    if task not in fits or several:
        raise UnsupportedModelError(
            f"The pretext {kind} is not defined for this model.",
            got=f"{type(model).__name__}, {'labels that are no single class' if several else f'task {task}'}",
            allowed=", ".join(fits) + (", of one class each" if kind == RANDOM_LABELS else ""),
            fix="Take another pretext.",
        )


def _check_setup(args: TrainingArguments, model: nn.Module, optimizer: Any) -> None:
    """Refuse what a head beside the wrapped model cannot go with."""
    check_launcher(args, model)
    check_step(optimizer, ["ScheduleFree"])  # whose weights are not the model's
    precision = AcceleratorState().mixed_precision
    if sharded_modules(model) or precision not in _PRECISIONS or args.n_gpu > 1:
        raise UnsupportedSetupError(
            "The language head is beside the wrapped model: its parameters are whole, and their gradients not scaled.",
            got="FSDP2" if sharded_modules(model) else f"mixed precision {precision}, {args.n_gpu} GPUs in one process",
            allowed="one process for each device, or DistributedDataParallel, in float32 or with bf16=True",
            fix="Launch so, or take random_labels or shuffled_tokens.",
        )


def _optimizer_like(optimizer: Any, parameters: Mapping[str, nn.Parameter]) -> Optimizer:
    """One of the same class with the same settings; weight decay on matrices only."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    taken = inspect.signature(type(inner)).parameters
    settings = {key: value for key, value in inner.defaults.items() if key in taken}
    decay = max((group.get("weight_decay", 0.0) for group in inner.param_groups), default=0.0)
    matrices = [parameter for parameter in parameters.values() if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters.values() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    try:
        return type(inner)([group for group in groups if group["params"]], **settings)
    except (TypeError, ValueError) as error:
        raise UnsupportedSetupError(
            f"The language head needs an optimizer of its own, which could not be built: {error}",
            got=type(inner).__name__,
            fix="Use optim='adamw_torch' or 'sgd', or take random_labels or shuffled_tokens.",
        ) from error


def _read(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / names.PRETEXT_FILE
    if not path.is_file():
        raise ResumeError(
            "The checkpoint lacks the language head of masked language modeling.",
            got=f"no {path}",
            fix="Resume from another checkpoint, or start anew.",
        )
    held: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return held

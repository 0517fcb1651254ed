"""The weights at the first release, when the head is trained and all else is as it was pretrained."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from hf_early_ood import names
from hf_early_ood.atomic import replacing
from hf_early_ood.callbacks.measuring import from_main_process
from hf_early_ood.callbacks.resumable import ResumableCallback
from hf_early_ood.callbacks.staged import StagedCallback
from hf_early_ood.errors import ConfigurationError, ResumeError, UnsupportedSetupError
from hf_early_ood.freezing import frozen_by
from hf_early_ood.schedules import Schedule, UnfreezingSchedule
from hf_early_ood.sharding import is_split_otherwise, sharded_modules

logger = logging.get_logger(__name__)


class FirstStageCallback(ResumableCallback):
    """Keep the weights that gradual unfreezing or LP-FT has trained by the first release, in any ``Trainer``.

    They are the head that WiSE-FT needs for the weights before fine-tuning: see
    `hf_early_ood.interventions.weight_interpolation.starting_point`. What trains in the first update is what is kept
    (the head, unless ``initial`` says otherwise), as it is just before the first update in which something else trains.
    It is written to ``first_stage.safetensors`` in the output folder, whole or not at all, by the main process. A
    checkpoint from after the release needs that file beside it; one from before makes it again, bit for bit.

    Costs one look at the flags of all parameters in every update, and once a file of the size of the head.

    Raises:
        ConfigurationError: Before the first update: training does not begin with a stage that a release ends.
        UnsupportedSetupError: Before the first update: parameters that are split over processes.
        ResumeError: The checkpoint is from after the release, and the file is gone.

    Example:
        >>> callback = FirstStageCallback()
        >>> # Trainer(model=model, args=args, callbacks=[GradualUnfreezingCallback(100), callback]).train()
        >>> # read_first_stage(args.output_dir)
    """

    def __init__(self) -> None:
        super().__init__({})
        self._names: list[str] = []
        self._released_at: int | None = None
        self._begins = False  # until the first update of a training

    def learned(self) -> dict[str, Any]:
        """What trains in the first stage, and after how many updates it ended."""
        return {"names": self._names, "released_at": self._released_at}

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Refuse a second one as soon as there is a Trainer."""
        self._refuse_second(state)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Take up what the checkpoint holds."""
        self._refuse_second(state)
        model = kwargs["model"]
        if sharded_modules(model) or is_split_otherwise(model):
            raise UnsupportedSetupError(
                "The weights of the first stage cannot be kept from a sharded model.",
                got="parameters that are split over processes",
                allowed="one process, or DistributedDataParallel",
                fix="Launch without sharding, or leave out FirstStageCallback.",
            )
        saved = self._saved(state) or {"names": [], "released_at": None}
        self._names, self._released_at = saved["names"], saved["released_at"]
        path = _path(str(args.output_dir))
        # Looked for where it was written: the other processes may have no such folder.
        if self._released_at is not None and not from_main_process(path.is_file()):
            raise ResumeError(
                "The weights of the first stage are gone.",
                got=f"no {path}, which was written after update {self._released_at}",
                fix="Put the file back, or resume from a checkpoint before that update.",
            )
        self._begins = True
        self._announce(state)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Look at the schedule before the first update, when whoever freezes layers has done so."""
        begins, self._begins = self._begins, False
        if not begins or self._released_at is not None:
            return
        freezer = frozen_by(kwargs["model"])
        staged = None if freezer is None else freezer.owner
        check_first_stage(staged.schedule if isinstance(staged, StagedCallback) else None)
        if state.is_world_process_zero:
            _path(str(args.output_dir)).unlink(missing_ok=True)  # of another training

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ):
        """Notice the first release. Flags change before an update, weights behind this point."""
        if self._released_at is not None:
            return
        parameters: dict[str, nn.Parameter] = dict(kwargs["model"].named_parameters())
        training = [name for name, parameter in parameters.items() if parameter.requires_grad]
        if not self._names:
            self._names = training
        elif self._names != training:
            self._released_at = state.global_step
            if state.is_world_process_zero:
                kept = {name: parameters[name].detach().cpu().contiguous() for name in self._names}
                with replacing(_path(str(args.output_dir))) as unfinished:
                    save_file(kept, unfinished)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Say so if there was nothing to keep."""
        if self._released_at is None:
            logger.warning("What trains has not changed during training: there are no weights of a first stage.")


def check_first_stage(schedule: Schedule | None) -> None:
    """Refuse a training in which no release ends a first stage, so that nothing could be kept, or the wrong weights.

    Args:
        schedule: What freezes and releases layers; None: nothing.

    Raises:
        ConfigurationError: It is no unfreezing schedule, begins late, or releases nothing.

    Example:
        >>> check_first_stage(UnfreezingSchedule(["block.0", "head"], interval=5))
        >>> check_first_stage(None)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        hf_early_ood.errors.ConfigurationError: ... Got: all layers train from the start. ...
    """
    if schedule is None:
        got = "all layers train from the start"
    elif not isinstance(schedule, UnfreezingSchedule):
        got = "layers that are frozen in the course of training, as by LISA and AutoFreeze"
    elif schedule.start:
        got = f"start={schedule.start}: all layers train first"
    elif not schedule.num_releases:
        got = f"a schedule that releases nothing after {', '.join(schedule.trainable_in(0))}"
    else:
        return
    raise ConfigurationError(
        "There is no first stage whose weights could be kept: training must begin with few layers, until others are"
        " released.",
        got=got,
        allowed="gradual unfreezing or LP-FT without a late start",
        fix="Use GradualUnfreezingCallback (method: gradual_unfreezing), or take the trained head: head='final'.",
    )


def read_first_stage(output_dir: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights that `FirstStageCallback` has kept, by name, on the CPU.

    Args:
        output_dir: The output folder of the training.

    Raises:
        ResumeError: There are none, or the file is not readable.
    """
    path = _path(output_dir)
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ResumeError(
            "There are no weights of the first stage.",
            got=f"no {path}",
            fix="Train with FirstStageCallback and a schedule that releases layers, or use head='final'.",
        ) from None
    except SafetensorError as error:
        raise ResumeError(f"{path} is not readable: {error}.", fix="Train again, or use head='final'.") from error


def _path(output_dir: str | os.PathLike[str]) -> Path:
    return Path(output_dir) / names.FIRST_STAGE_FILE

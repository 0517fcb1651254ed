"""What a movement is measured from: the weights at the start, for good, and those before an update, for a moment."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hf_early_ood import names
from hf_early_ood.atomic import replacing
from hf_early_ood.callbacks.measuring import from_main_process
from hf_early_ood.errors import ResumeError
from hf_early_ood.folders import sha256
from hf_early_ood.layers import LayerGroups
from hf_early_ood.probes.trajectory import copied
from hf_early_ood.sharding import gathered
from hf_early_ood.start_weights import mapped_weights, write_start_weights


class StartKeeper:
    """Keeps weights of what trains at some time, on the main process; the other processes hold nothing.

    The start weights are written once, so that a training that is resumed finds them again by their hash: a checkpoint
    does not hold them. A run that is resumed in another folder takes the file over.

    Args:
        groups: The layer groups of what trains.
        folder: ``output_dir`` of the training.
        is_main: Whether this is the main process.
        on_disk: Map the file into memory where it is read, instead of holding a copy.

    Attributes:
        start: Weights at the start, by name; None: not yet, or not here.
        before: Weights before the update that is being made, by name; None: none were kept.
        seconds: What it took to keep these.
    """

    def __init__(self, groups: LayerGroups, folder: str, *, is_main: bool, on_disk: bool) -> None:
        self.groups, self.folder, self.is_main, self.on_disk = groups, folder, is_main, on_disk
        self.start: Mapping[str, Tensor] | None = None
        self.before: Mapping[str, Tensor] | None = None
        self.seconds = 0.0
        self._sha256: str | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.folder) / names.START_WEIGHTS_FILE

    def take(self, model: nn.Module) -> None:
        """Keep the weights as they are now as those of the start. Must be called on every rank."""
        with gathered(model):
            if self.is_main:
                weights = copied(model, self.groups)
                self._sha256 = write_start_weights(self.path, weights)
                self.start = mapped_weights(self.path) if self.on_disk else weights

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Take up the start weights of the checkpoint. Must be called on every rank.

        Raises:
            ResumeError: They are neither in the output folder nor in that of the checkpoint, or others are there.
        """
        error = None
        if self.is_main:
            try:
                self._find(learned)
            except ResumeError as reason:
                error = reason
        error = from_main_process(error)
        if error is not None:
            raise error

    def keep_before(self, model: nn.Module) -> None:
        """Keep the weights as they are now, until `drop_before`. Must be called on every rank."""
        begin = time.perf_counter()
        with gathered(model):
            if self.is_main:
                self.before = copied(model, self.groups)
        self.seconds = time.perf_counter() - begin

    def drop_before(self) -> None:
        """Free the copy that `keep_before` made."""
        self.before, self.seconds = None, 0.0

    def learned(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"folder": self.folder, "sha256": self._sha256}

    def _find(self, learned: Mapping[str, Any]) -> None:
        places = [self.path, Path(learned["folder"]) / names.START_WEIGHTS_FILE]
        there = [place for place in places if place.is_file()]
        found = next((place for place in there if sha256(place) == learned["sha256"]), None)
        if found is None:
            got = f"{there[0]}, which is of another training" if there else f"no {places[0]}"
            raise ResumeError(
                "The weights at the start of this training are gone.",
                got=got,
                allowed="the file that was written when it began",
                fix="Put the file back, or start anew. Without 'trajectory' among the measures it is not needed.",
            )
        if found != self.path:
            with replacing(self.path) as unfinished:
                shutil.copyfile(found, unfinished)
        self._sha256 = learned["sha256"]
        on_disk = mapped_weights(self.path)
        self.start = on_disk if self.on_disk else {name: weight.clone() for name, weight in on_disk.items()}

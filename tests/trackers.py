"""What trackers were told, read back."""

from __future__ import annotations

import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# What transformers logs of its own accord and what says how long something took.
TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos")


def events(folder: Path) -> EventAccumulator:
    """All events of the one folder under ``folder`` that has event files."""
    files = list(folder.rglob("*tfevents*"))
    assert len({file.parent for file in files}) == 1
    with TemporaryDirectory() as ordered:
        # Files of one second differ by a count in their names, which TensorBoard sorts as text: 10 before 9.
        for index, file in enumerate(sorted(files, key=_numbers)):
            (Path(ordered) / f"events.out.tfevents.{index:04}").symlink_to(file.resolve())
        return EventAccumulator(ordered, size_guidance={"scalars": 0, "tensors": 0}).Reload()


def _numbers(file: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", file.name)]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Points of every series, without the "train/" that transformers writes before it."""
    found = events(folder)
    return {
        tag.removeprefix("train/"): [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def texts(folder: Path, tag: str) -> list[tuple[int, str]]:
    """Texts under a name."""
    return [
        (event.step, event.tensor_proto.string_val[0].decode())
        for event in events(folder).Tensors(f"{tag}/text_summary")
    ]


class FakeWandb(ModuleType):
    """As much of W&B as transformers and this package call; every call is in ``calls``."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.calls: list[tuple[str, Any]] = []
        self.run: Any = None
        self.config: dict[str, Any] = {}

    def install(self, monkeypatch: Any) -> FakeWandb:
        config_util = ModuleType("wandb.sdk.lib.config_util")
        config_util.ConfigError = RuntimeError  # type: ignore[attr-defined]
        for name in ("wandb.sdk", "wandb.sdk.lib"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setitem(sys.modules, config_util.__name__, config_util)
        monkeypatch.setitem(sys.modules, "wandb", self)
        return self

    def of(self, name: str) -> list[Any]:
        return [what for call, what in self.calls if call == name]

    def init(self, **settings: Any) -> None:
        self.calls.append(("init", settings))
        self.config = _Config()
        self.run = SimpleNamespace(_label=lambda code: None, summary={})

    def define_metric(self, *names: Any, **settings: Any) -> None:
        pass

    def log(self, values: dict[str, Any]) -> None:
        self.calls.append(("log", values))

    def alert(self, **alert: Any) -> None:
        self.calls.append(("alert", alert))

    def finish(self, exit_code: int = 0) -> None:
        self.calls.append(("finish", {"exit_code": exit_code, "config": dict(self.config)}))
        self.run = None


class _Config(dict):
    def update(self, values: Any, allow_val_change: bool = False) -> None:  # type: ignore[override]
        super().update(values)

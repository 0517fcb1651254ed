"""The recipes for accelerate, read by accelerate's own launcher."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

from hf_early_ood.config import load_run

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
COMMAND = "#   accelerate launch "


def launched(file: Path) -> argparse.Namespace:
    """What ``accelerate launch`` makes of the command in the header of a file, and of the file."""
    (command,) = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith(COMMAND)]
    arguments, _, _ = _validate_launch_command(
        launch_command_parser().parse_args(command.removeprefix(COMMAND).split())
    )
    return arguments


def launch_environment(file: Path) -> dict[str, str]:
    """The variables that ``accelerate launch`` sets for every process; the plugin of FSDP reads them."""
    return {k: v for k, v in prepare_multi_gpu_env(launched(file)).items() if k.startswith(("ACCELERATE_", "FSDP_"))}


def test_there_is_one_for_every_kind_of_machine():
    assert [file.stem for file in FILES] == ["cpu", "fsdp2", "one_gpu", "several_gpus"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_takes_file_and_command(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    load_config_from_file(str(file))  # raises for keys that accelerate does not know
    arguments = launched(file)
    assert (ROOT / arguments.config_file).samefile(file)
    assert arguments.training_script == "recipes/run.py"
    assert (ROOT / arguments.training_script).is_file()
    assert arguments.training_script_args[0] == "--config"
    load_run(ROOT / arguments.training_script_args[1])
    kinds = {"cpu": (1, False, False), "one_gpu": (1, False, False), "several_gpus": (2, True, False)}
    expected = kinds.get(file.stem, (2, False, True))
    assert (arguments.num_processes, bool(arguments.multi_gpu), bool(arguments.use_fsdp)) == expected
    assert bool(arguments.use_cpu) is (file.stem == "cpu")


def test_the_plugin_of_fsdp_is_made_from_the_file(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, value in launch_environment(ROOT / "recipes" / "accelerate" / "fsdp2.yaml").items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.transformer_cls_names_to_wrap == ["BertLayer"]
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)

"""The one-way stairs of the design, read from the source, and what ``--help`` may cost."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import hf_early_ood

PACKAGE = Path(hf_early_ood.__file__).parent

# Each floor may import from itself and from the floors above it in this list.
FLOORS = [
    {"errors", "names"},
    {"atomic", "attributions", "checks", "claiming", "decoding", "duplicates", "folders", "languages", "roles"},
    {"schedules", "stabilization", "voting"},
    {"results", "dynamics", "similarities", "environment", "config", "freezing", "sharding", "start_weights"},
    {"layer_groups", "layer_rules", "layers", "layer_check", "probes", "bundled", "checkpoints"},
    {"sources", "data", "tasks", "evaluation", "interventions"},
    {"callbacks", "report", "hyperparameters"},
    {"hub"},
    {"trainer", "training", "tracking", "probing", "interpolating", "comparing", "run_record"},
    {"experiment"},
    {"study"},
    {"rescoring", "evaluating", "deepness"},
    {"cli_depth", "cli_publish", "cli_report", "cli_schedule", "cli_similarity", "cli_study", "cli_trajectory"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Rooms that must never see a model.
WITHOUT_TORCH = {
    "errors",
    "names",
    "atomic",
    "checks",
    "folders",
    "claiming",
    "schedules",
    "stabilization",
    "roles",
    "languages",
    "voting",
    "decoding",
    "results",
    "dynamics",
    "attributions",
    "similarities",
    "config",
    "report",
    "hub",
}
WITHOUT_TRAINER = {
    "layers",
    "layer_groups",
    "layer_rules",
    "layer_check",
    "freezing",
    "sharding",
    "probes",
    "interventions",
    "evaluation",
}


def room(module: str) -> str:
    """The first part below the package of a dotted module name."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(file: Path) -> list[tuple[str, list[str]]]:
    """All modules a file imports, at the top or inside functions, with the imported names."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            found.append((node.module or "", [alias.name for alias in node.names]))
    return found


FILES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down_only(file):
    here = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module, imported in imports(file):
        if module.split(".")[0] == "hf_early_ood":
            targets = imported if module == "hf_early_ood" else [room(module)]
            for target in targets:
                if target in FLOOR:
                    assert target == here or FLOOR[target] <= FLOOR[here], f"{here} must not import {target}"
        top = module.split(".")[0]
        if here in WITHOUT_TORCH:
            lazily = here == "config" and file.name == "training_arguments.py"
            assert top not in ("torch", "transformers", "datasets", "peft", "accelerate") or lazily, module
        if here in WITHOUT_TRAINER:
            assert not {"Trainer", "TrainerCallback", "TrainingArguments"} & set(imported), module


def test_every_room_has_a_floor():
    rooms = {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in FILES}
    assert rooms == set(FLOOR)


def test_files_can_be_held_in_the_head():
    long = {str(file.relative_to(PACKAGE)): len(file.read_text().splitlines()) for file in FILES}
    assert not {name: lines for name, lines in long.items() if lines > 480}


MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(hf_early_ood.__path__, "hf_early_ood.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_public_names_are_there():
    for name in hf_early_ood.__all__:
        assert getattr(hf_early_ood, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        hf_early_ood.nonsense  # noqa: B018


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            [command, "--help"]
            for command in (
                *("run", "study", "rescore", "evaluate", "compare", "report", "schedule", "probe", "publish"),
                *("depth", "similarity", "trajectory"),
            )
        ),
        ["--help"],
        ["keys"],
        ["presets"],
    ],
)
def test_help_loads_nothing_heavy(arguments):
    """What makes it slow is torch and its friends; a time limit would measure the machine."""
    code = (
        "import sys; from hf_early_ood.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"

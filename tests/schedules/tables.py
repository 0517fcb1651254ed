"""Tables of what trains, short enough to be written by hand."""

from __future__ import annotations

from hf_early_ood.schedules import Schedule

GROUPS = ["embeddings", "block.0", "block.1", "block.2", "head"]
_LETTERS = {"embeddings": "e", "block.0": "0", "block.1": "1", "block.2": "2", "head": "h"}


def letters(names) -> str:
    """Names of groups as letters: "12h" are block.1, block.2 and head."""
    return "".join(_LETTERS[name] for name in names)


def trained(schedule: Schedule, updates: int) -> str:
    """What trains in each of the first updates."""
    return " ".join(letters(schedule.trainable(step)) for step in range(updates))


def follow(schedule: Schedule, choices: list[list[str]]) -> Schedule:
    """The schedule after these choices, asked for as a run does: before each stage that needs one."""
    stage, left = 0, list(choices)
    while left:
        stage += 1
        if schedule.needs_choice(stage):
            schedule = schedule.chosen(left.pop(0))
    return schedule

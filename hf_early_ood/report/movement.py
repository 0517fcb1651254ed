"""Tables of where the weights were along a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hf_early_ood.dynamics import Measurement
from hf_early_ood.names import TRAJECTORY
from hf_early_ood.report.layout import Table
from hf_early_ood.report.measurements import number

_COLUMNS = {
    "distance": "",
    "to end": "/distance_to_end",
    "step": "/update_length",
    "cos start": "/cosine",
    "cos end": "/cosine_with_end",
    "cos so far": "/update_cosine",
    "cos way": "/update_cosine_to_end",
    "signs": "/sign_changes",
    "mean |w|": "/mean_magnitude",
}
_GROUP_COLUMNS = {
    "distance": "",
    "relative": "/relative_distance",
    "share": "/share_of_movement",
    "cos start": "/cosine",
    "signs": "/sign_changes",
    "mean |w|": "/mean_magnitude",
}


def movement_tables(measurements: Sequence[Measurement], models: Mapping[int, str]) -> list[Table]:
    """A line a model; and, at the last one, a line a layer group.

    Args:
        measurements: Of the trajectory, in the order of their steps.
        models: Step -> name of the model.
    """
    by_step = {(item.step, item.measure.removeprefix(TRAJECTORY)): item for item in measurements}
    rows = []
    for step, name in models.items():
        cells = (by_step.get((step, key)) for key in _COLUMNS.values())
        rows.append((name, *(number(None if item is None else item.value) for item in cells)))
    last = max(models)
    groups = [
        (group, *(number(_of_group(by_step.get((last, key)), group)) for key in _GROUP_COLUMNS.values()))
        for group in by_step[last, ""].per_group
    ]
    return [
        Table(
            "Weights along the training",
            ("model", *_COLUMNS),
            rows,
            "distance, cos start: of the weights and those at the start. step: from the model before. cos so far: of"
            " the step and all movement so far. cos way: of the step and the way to the last model. signs: share that"
            " differs from the start, where zero has a sign of its own.",
        ),
        Table(
            f"{models[last]} by layer group",
            ("group", *_GROUP_COLUMNS),
            groups,
            "relative: to the norm at the start. share: of the squared distance.",
        ),
    ]


def _of_group(item: Measurement | None, group: str) -> float | None:
    return None if item is None else item.per_group.get(group)

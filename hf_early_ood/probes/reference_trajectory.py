"""The slow, obviously right twin of the trajectory: a plain loop over parameters, whole and in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def movement_of(
    now: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    before: Mapping[str, Tensor] | None,
    group_of: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    """The quantities of `hf_early_ood.probes.trajectory.Movement`, of each group and of ``"total"``.

    Args:
        now: Weights by name. Where there are adapters, those of the merged model.
        start: The same at the start.
        before: The same before the last update; None: nothing is said about it.
        group_of: Name to group, of what counts.
    """
    members: dict[str, list[str]] = {"total": list(group_of)}
    for name, group in group_of.items():
        members.setdefault(group, []).append(name)
    whole = sum(float((now[name].double() - start[name].double()).square().sum()) for name in group_of)
    found = {}
    for group, inside in members.items():
        count, magnitude, changed = 0, 0.0, 0
        of_now, of_start, of_moved, both, of_update, along = (0.0,) * 6
        for name in inside:
            w, w0 = now[name].double(), start[name].double()
            count += w.numel()
            magnitude += float(w.abs().sum())
            changed += sum(
                _sign(a) != _sign(b) for a, b in zip(w.flatten().tolist(), w0.flatten().tolist(), strict=True)
            )
            of_now += float((w * w).sum())
            of_start += float((w0 * w0).sum())
            of_moved += float(((w - w0) ** 2).sum())
            both += float((w * w0).sum())
            if before is not None:
                u = w - before[name].double()
                of_update += float((u * u).sum())
                along += float((u * (w - w0)).sum())
        found[group] = {
            "num_parameters": count,
            "distance": of_moved**0.5,
            "mean_magnitude": magnitude / count,
            "sign_changes": changed / count,
            "relative_distance": (of_moved / of_start) ** 0.5 if of_start else None,
            "cosine": both / (of_now * of_start) ** 0.5 if of_now * of_start else None,
            "share_of_movement": of_moved / whole if whole else None,
            "update_length": None if before is None else of_update**0.5,
            "update_cosine": None if not of_update * of_moved else along / (of_update * of_moved) ** 0.5,
        }
    return found


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)

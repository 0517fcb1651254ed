"""Several signals, one decision: each has a detector, and a vote says when enough of them are stable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hf_early_ood.errors import ConfigurationError, did_you_mean
from hf_early_ood.stabilization import FALLBACK, Decision, StabilizationDetector, check_saved_settings

VOTES = ("all", "majority", "any")


class SignalVote:
    """Decide when all, most, or one of several signals have become stable.

    A signal that was once found stable keeps its vote. With one signal this is its detector.

    Args:
        signals: Names of the signals.
        vote: "all": the last of them decides. "majority": more than half. "any": the first of them decides.
        window: As for `StabilizationDetector`, which says what a stable signal is.
        tolerance: Likewise.
        transient: Likewise.
        max_step: Completed updates at which the decision falls at the latest, however many are stable.

    Raises:
        ConfigurationError: An unknown vote, no signal or one twice, or a setting of the detectors is not usable.

    Example:
        >>> vote = SignalVote(["fisher_trace", "average_sharpness"], window=1, max_step=50)
        >>> for step, (trace, sharpness) in enumerate([(1.0, 1.0), (1.0, 2.0), (1.0, 2.0)]):
        ...     decision = vote.update(step, {"fisher_trace": trace, "average_sharpness": sharpness})
        >>> decision.step, decision.reason, decision.signal
        (2, 'stable', 'average_sharpness')
    """

    def __init__(
        self,
        signals: list[str],
        vote: str = "all",
        *,
        window: int = 3,
        tolerance: float = 0.02,
        transient: int = 0,
        max_step: int | None = None,
    ) -> None:
        if vote not in VOTES:
            raise ConfigurationError(
                "Unknown vote.", got=vote, allowed=", ".join(VOTES), fix=did_you_mean(str(vote), VOTES)
            )
        if isinstance(signals, str) or not signals or len(set(signals)) < len(signals):
            raise ConfigurationError("signals is a list of names, each once.", got=repr(signals))
        self.vote = vote
        # One that has not voted is asked until the end; only the vote is forced.
        self.detectors = {name: StabilizationDetector(window, tolerance, transient, None) for name in signals}
        self._limits = StabilizationDetector(window, tolerance, transient, max_step)  # checks max_step
        self.decision: Decision | None = None
        self.last_step: int | None = None

    @property
    def signals(self) -> list[str]:
        """Names of the signals."""
        return list(self.detectors)

    @property
    def transient(self) -> int:
        """Updates at the start that are not judged."""
        return self._limits.transient

    @property
    def max_step(self) -> int | None:
        """Completed updates at which the decision falls at the latest."""
        return self._limits.max_step

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**self._limits.settings, "signals": self.signals, "vote": self.vote}

    def update(self, step: int, values: Mapping[str, float]) -> Decision | None:
        """Take the measurements made after ``step`` completed updates.

        Args:
            step: Completed updates, larger than at the call before.
            values: One value for each signal; NaN where there is none, which neither breaks nor fakes stability.

        Returns:
            The decision, as soon as and ever after it has fallen.

        Raises:
            ConfigurationError: A signal is missing, or steps do not increase.
        """
        if set(values) != set(self.detectors):
            raise ConfigurationError("A value for each signal is needed.", got=sorted(values), allowed=self.signals)
        newest = None
        for name, detector in self.detectors.items():
            before = detector.decision
            found = detector.update(step, values[name])
            if before is None and found is not None:
                newest = replace(found, signal=name)
        self.last_step = step
        if self.decision is not None:
            return self.decision
        stable = sum(detector.decision is not None for detector in self.detectors.values())
        needed = {"all": len(self.detectors), "majority": len(self.detectors) // 2 + 1, "any": 1}[self.vote]
        if newest is not None and stable >= needed:
            self.decision = newest
        elif self.max_step is not None and step >= self.max_step:
            self.decision = self._fallback(step)
        return self.decision

    def _fallback(self, step: int) -> Decision:
        # The first signal that was never stable speaks for what was waited for.
        name, detector = next((n, d) for n, d in self.detectors.items() if d.decision is None)
        average, change = detector.last
        return Decision(step, FALLBACK, average, change, detector.num_measurements, detector.num_skipped, signal=name)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {
            "settings": self.settings,
            "detectors": {name: detector.state_dict() for name, detector in self.detectors.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            ResumeError: The state was made with other settings.
        """
        check_saved_settings(state["settings"], self.settings)
        for detector in self.detectors.values():
            detector.reset()
        self.decision = self.last_step = None
        series = {name: saved["series"] for name, saved in state["detectors"].items()}
        for rows in zip(*(series[name] for name in self.detectors), strict=True):
            values = [math.nan if value is None else value for _, value in rows]
            self.update(rows[0][0], dict(zip(self.detectors, values, strict=True)))

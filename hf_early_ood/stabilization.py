"""When is a signal stable? A causal rule: series -> update at which the layers are released. Pure Python, no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from hf_early_ood.errors import ConfigurationError, ResumeError

STABLE = "stable"
FALLBACK = "fallback"


@dataclass(frozen=True)
class Decision:
    """The update at which the signal was found stable, and why."""

    step: int
    """Completed updates when the decision fell."""
    reason: str
    """"stable": the rule held. "fallback": it did not hold until the maximum step."""
    value: float | None
    """Moving average of the signal at the decision."""
    change: float | None
    """Its relative change since the measurement before."""
    num_measurements: int
    num_skipped: int
    """Measurements that were NaN or infinite and did not count."""
    at_first_chance: bool = False
    """Whether the signal was stable at the first measurement that could decide: it may not have begun to move."""
    signal: str | None = None
    """Of several signals, the one whose vote decided, or (fallback) one that was waited for in vain."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


class StabilizationDetector:
    r"""Find the update at which a noisy signal has become stable, while it is being measured.

    The heuristic of Liu & Gurevych 2024 (arXiv 2403.15210v1, section 6.4 and algorithm 2), made causal. With
    measurements :math:`v_1, v_2, \dots` and their moving average over the last :math:`\tau`,

    .. math:: m_i = \frac{1}{\tau} \sum_{j=i-\tau+1}^{i} v_j, \qquad
              c_i = \frac{|m_i - m_{i-1}|}{|m_{i-1}|},

    the signal is stable at the first i after the initial transient with :math:`c_i \le \epsilon`.

    What the paper leaves open, and what is done here:

    * *Normalization of the signal*: c is relative to the level of the signal (the paper: "change within 2 %"), so
      the answer does not depend on the unit.
    * *Initial transient* (dropped before anything else; its end is found "with similar logic" in the paper): rapid
      change is not stable by the rule itself, so only a flat start *before* the rapid change has to be left out,
      as during learning-rate warm-up. ``transient`` says for how many updates.
    * *Never stable*: at ``max_step`` the decision falls anyway, marked "fallback".

    Defined corner cases: a NaN or infinite measurement is skipped and counted, it neither breaks nor fakes
    stability; a constant signal is stable at measurement tau + 1 (its change is 0, also at the level 0);
    too few measurements decide nothing before ``max_step``. The rule looks at the past only: replaying a recorded
    series with :meth:`replay` gives the same step.

    Args:
        window: tau, in measurements (the paper: 3 or 8, measured every 10 updates).
        tolerance: epsilon, relative change between two measurements (the paper: 0.02).
        transient: Number of updates whose measurements are left out (the paper: typically the first 50 to 100).
        max_step: Completed updates at which the decision falls at the latest; None: never by force.

    Raises:
        ConfigurationError: A setting is out of range.

    Example:
        >>> detector = StabilizationDetector(window=2, tolerance=0.05)
        >>> for step, value in enumerate([1.0, 4.0, 6.0, 6.1, 6.0, 6.05]):
        ...     decision = detector.update(step, value)
        >>> decision.step, decision.reason
        (4, 'stable')
    """

    def __init__(
        self,
        window: int = 3,
        tolerance: float = 0.02,
        transient: int = 0,
        max_step: int | None = None,
    ) -> None:
        if not isinstance(window, int) or isinstance(window, bool) or window < 1:
            raise ConfigurationError("The window counts measurements.", got=repr(window), allowed="an integer >= 1")
        is_number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
        if not (is_number and math.isfinite(tolerance) and tolerance >= 0):
            raise ConfigurationError(
                "The tolerance is a relative change.", got=repr(tolerance), allowed="a number >= 0"
            )
        if not isinstance(transient, int) or isinstance(transient, bool) or transient < 0:
            raise ConfigurationError(
                "The transient is a number of updates.", got=repr(transient), allowed="an integer >= 0"
            )
        if max_step is not None and (not isinstance(max_step, int) or isinstance(max_step, bool) or max_step < 1):
            raise ConfigurationError(
                "The latest step of a decision is a number of updates.", got=repr(max_step), allowed="an integer >= 1"
            )
        self.window = window
        self.tolerance = float(tolerance)
        self.transient = transient
        self.max_step = max_step
        self.reset()

    def reset(self) -> None:
        """Forget all measurements."""
        self.decision: Decision | None = None
        self._series: list[tuple[int, float]] = []
        self._recent: list[float] = []
        self._average: float | None = None
        self._change: float | None = None
        self._num_skipped = 0
        self._num_judged = 0

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "window": self.window,
            "tolerance": self.tolerance,
            "transient": self.transient,
            "max_step": self.max_step,
        }

    @property
    def last(self) -> tuple[float | None, float | None]:
        """The moving average now, and its relative change at the last measurement."""
        return self._average, self._change

    @property
    def num_measurements(self) -> int:
        """Measurements so far, those that did not count included."""
        return len(self._series)

    @property
    def num_skipped(self) -> int:
        """Measurements that were NaN or infinite and did not count."""
        return self._num_skipped

    def update(self, step: int, value: float) -> Decision | None:
        """Take the measurement made after ``step`` completed updates.

        Returns:
            The decision, as soon as and ever after it has fallen.

        Raises:
            ConfigurationError: Steps do not increase.
        """
        if self._series and step <= self._series[-1][0]:
            raise ConfigurationError(
                "Measurements must come in the order of their steps.",
                got=f"step {step} after step {self._series[-1][0]}",
            )
        self._series.append((step, value))
        if self.decision is not None:
            return self.decision
        self._change = change = self._smooth(step, value)
        # Not at step 0: an interval has at least one update.
        if step > 0 and change is not None and change <= self.tolerance:
            self._decide(step, STABLE, change)
        elif self.max_step is not None and step >= self.max_step:
            self._decide(step, FALLBACK, change)
        return self.decision

    def _smooth(self, step: int, value: float) -> float | None:
        """Update the moving average; return its relative change, None while there is none."""
        if not math.isfinite(value):
            self._num_skipped += 1
            return None
        if step < self.transient:
            return None
        self._recent = [*self._recent, value][-self.window :]
        if len(self._recent) < self.window:
            return None
        before, self._average = self._average, math.fsum(self._recent) / self.window
        if before is None:
            return None
        self._num_judged += 1
        difference = abs(self._average - before)
        return 0.0 if difference == 0 else math.inf if before == 0 else difference / abs(before)

    def _decide(self, step: int, reason: str, change: float | None) -> None:
        first = reason == STABLE and self._num_judged == 1
        self.decision = Decision(step, reason, self._average, change, len(self._series), self._num_skipped, first)

    @classmethod
    def replay(cls, series: Iterable[tuple[int, float]], **settings: Any) -> Decision | None:
        """The decision that this rule makes on a recorded series of (step, value).

        Example:
            >>> StabilizationDetector.replay([(0, 2.0), (10, 2.0), (20, 2.0), (30, 2.0)], window=3).step
            30
        """
        detector = cls(**settings)
        for step, value in series:
            detector.update(step, value)
        return detector.decision

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state: the settings and the series (non-finite values as None)."""
        series = [[step, value if math.isfinite(value) else None] for step, value in self._series]
        return {"settings": self.settings, "series": series}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            ResumeError: The state was made with other settings.
        """
        check_saved_settings(state["settings"], self.settings)
        self.reset()
        for step, value in state["series"]:
            self.update(step, math.nan if value is None else value)


def check_saved_settings(saved: Any, ours: Any) -> None:
    """Refuse to go on with a detector, or several, that a checkpoint has with other settings.

    Raises:
        ResumeError: They differ.
    """
    if saved != ours:
        raise ResumeError(
            "The checkpoint's detector has other settings: its decision would not be the one of this run.",
            got=saved,
            allowed=ours,
            fix="Resume with the settings of the checkpoint, or start anew.",
        )

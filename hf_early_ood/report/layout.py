"""Tables as plain ASCII text of limited width, or as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

WIDTH = 100
NO_VALUE = "-"
LONG = 44  # letters of a cell, from which on a page breaks it
_GAP = "  "
_AXES = {
    "fisher_trace": "mean of ||grad log p(y|x)||²",
    "fisher_trace_batch_mean": "||mean gradient of log p||² / B",
    "gradient_norm": "norm of the gradient of the nll",
    "relative_gradient_norm": "norm of the gradient / of the weights",
    "average_sharpness": "mean rise of the nll",
    "worst_case_sharpness": "largest rise of the nll",
    "hessian_trace": "trace of the Hessian of the nll",
    "gauss_newton_trace": "trace of the Gauss-Newton matrix",
    "hessian_top_eigenvalue": "largest eigenvalue of the Hessian",
    "gradient_subspace_overlap": "share of the squared gradient",
    "trajectory": "distance to the start",
    "trajectory/mean_magnitude": "mean |w|",
    "trajectory/sign_changes": "share of signs that differ",
    "trajectory/relative_distance": "distance / norm at the start",
    "trajectory/cosine": "cosine of w and the start",
    "trajectory/share_of_movement": "share of the squared distance",
    "trajectory/update_length": "length of the update",
    "trajectory/update_cosine": "cosine of the update and the movement so far",
}
_METRICS = {
    "f1": "F1",
    "macro_f1": "macro-F1",
    "ece": "ECE",
    "ece_calibrated": "ECE at T",
    "brier": "Brier",
    "brier_calibrated": "Brier at T",
}


@dataclass(frozen=True)
class Table:
    """A titled table. The first column and those in ``left`` are aligned left, the others right.

    Args:
        title: What the numbers are, unit included.
        headers: One for each column.
        rows: Cells as they will be printed.
        note: A sentence below the table.
        left: Headers of further columns of words.

    Example:
        >>> print(Table("Points", ("set", "a"), (("movie", "81.3"),)).text())
        Points
        ------------
        set       a
        movie  81.3
    """

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str | None = None
    left: Sequence[str] = ()
    kind: ClassVar[str] = "table"

    def text(self, width: int = WIDTH) -> str:
        """Plain ASCII text; columns that do not fit into ``width`` follow in a second block."""
        cells = [[_shortened(_ascii(cell), width // 2) for cell in row] for row in (self.headers, *self.rows)]
        sizes = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [_ascii(self.title), "-" * max(12, len(self.title))]
        for number, block in enumerate(_blocks(sizes, width)):
            if number:
                lines.append("")
            for row in cells:
                lines.append(_GAP.join(self._aligned(row[i], i, sizes[i]) for i in (0, *block)).rstrip())
        if self.note:
            lines += wrapped(self.note, width)
        return "\n".join(lines)

    def _aligned(self, cell: str, column: int, size: int) -> str:
        return cell.ljust(size) if column == 0 or self.headers[column] in self.left else cell.rjust(size)

    def blocks(self, width: int) -> list[Table]:
        """The same as several tables, none much wider than ``width`` letters; each begins with the first column."""
        # Headers can be broken, and so can long cells.
        sizes = [min(12, max(map(len, header.split()), default=0)) for header in self.headers]
        for row in self.rows:
            sizes = [max(size, min(len(cell), LONG)) for size, cell in zip(sizes, row, strict=True)]
        columns = [(0, *block) for block in _blocks(sizes, width)]
        return [
            replace(
                self,
                headers=[self.headers[column] for column in block],
                rows=[[row[column] for column in block] for row in self.rows],
                note=self.note if number == len(columns) - 1 else None,
            )
            for number, block in enumerate(columns)
        ]

    def markdown(self) -> str:
        """A Markdown table."""
        rows = [" | ".join(_one_line(cell).replace("|", "\\|") for cell in row) for row in (self.headers, *self.rows)]
        words = (self.headers[0], *self.left)
        rule = " | ".join("---" if header in words else "---:" for header in self.headers)
        lines = [f"**{self.title}**", "", f"| {rows[0]} |", f"| {rule} |", *(f"| {row} |" for row in rows[1:])]
        if self.note:
            lines += ["", _one_line(self.note)]
        return "\n".join(lines)


def wrapped(text: str, width: int = WIDTH, indent: str = "") -> list[str]:
    """``text`` in ASCII lines of at most ``width`` columns."""
    return textwrap.wrap(_ascii(text), width, initial_indent=indent, subsequent_indent=indent)


def points(value: float | None) -> str:
    """A fraction in percent with one decimal.

    Example:
        >>> points(0.8134), points(None)
        ('81.3', '-')
    """
    return NO_VALUE if value is None else f"{100 * value:.1f}"


def signed(value: float | None) -> str:
    """A difference of fractions in percent points with its sign.

    Example:
        >>> signed(0.0231), signed(-0.004)
        ('+2.3', '-0.4')
    """
    if value is None:
        return NO_VALUE
    return f"{100 * value:+.1f}".replace("-0.0", "+0.0") if abs(value) < 0.0005 else f"{100 * value:+.1f}"


def with_interval(value: float | None, low: float | None, high: float | None, *, sign: bool = False) -> str:
    """A number with its interval.

    Example:
        >>> with_interval(0.813, 0.80, 0.83), with_interval(0.01, -0.02, 0.04, sign=True)
        ('81.3 [80.0, 83.0]', '+1.0 [-2.0, +4.0]')
    """
    form = signed if sign else points
    if value is None or low is None or high is None:
        return form(value)
    return f"{form(value)} [{form(low)}, {form(high)}]"


def p_text(p: float) -> str:
    """A p-value; small ones are not told apart.

    Example:
        >>> p_text(0.0321), p_text(0.00004), p_text(1.0)
        ('p = 0.032', 'p < 0.001', 'p = 1')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them.

    Example:
        >>> duration(8.04), duration(75.0), duration(7260.0)
        ('8.0 s', '1 min 15 s', '2 h 01 min')
    """
    if seconds is None:
        return NO_VALUE
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def share(part: float | None, whole: float | None) -> str:
    """A part of a whole in percent.

    Example:
        >>> share(1.0, 40.0), share(1.0, None)
        ('2.5%', '-')
    """
    if part is None or not whole:
        return NO_VALUE
    return f"{100 * part / whole:.1f}%"


def metric_title(metric: str) -> str:
    """What a reader calls a metric.

    Example:
        >>> metric_title("balanced_accuracy"), metric_title("f1")
        ('balanced accuracy', 'F1')
    """
    return _METRICS.get(metric, metric.replace("_", " "))


def measure_title(measure: str) -> str:
    """What a reader calls a measure.

    Example:
        >>> measure_title("hessian_top_eigenvalue")
        'Hessian top eigenvalue'
        >>> measure_title("gauss_newton_trace")
        'Gauss-Newton trace'
        >>> measure_title("trajectory/sign_changes")
        'Trajectory: sign changes'
    """
    words = measure.replace("gauss_newton", "gauss-Newton").replace("_", " ").replace("/", ": ")
    return words[:1].upper() + words[1:]


def measure_axis(measure: str) -> str:
    """What the numbers of a measure are, for an axis; nll is the negative log-likelihood of an example.

    Example:
        >>> measure_axis("average_sharpness")
        'mean rise of the nll'
        >>> measure_axis("weight_norm")
        'weight norm'
    """
    return _AXES.get(measure, measure.replace("_", " "))


def _blocks(sizes: Sequence[int], width: int) -> list[list[int]]:
    """Columns, the first left out, that fit side by side."""
    blocks: list[list[int]] = [[]]
    used = sizes[0]
    for column in range(1, len(sizes)):
        needed = len(_GAP) + sizes[column]
        if blocks[-1] and used + needed > width:
            blocks.append([])
            used = sizes[0]
        blocks[-1].append(column)
        used += needed
    return blocks


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _shortened(text: str, limit: int) -> str:
    text = _one_line(text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode("ascii")

"""Draw the record of the study of replaceable layers: python benchmarks/replaceable_figure.py."""

from __future__ import annotations

from pathlib import Path

from hf_early_ood.names import STUDY_FILE
from hf_early_ood.report.figures.replaceable import replaceable_figure
from hf_early_ood.results import read_study

FOLDER = Path(__file__).parent / "results" / "replaceable_layers"


def main() -> None:
    replaceable_figure(read_study(FOLDER / STUDY_FILE), FOLDER / "replaceable_layers.png")


if __name__ == "__main__":
    main()

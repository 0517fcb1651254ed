"""Write the tables of README.md and all of benchmarks/README.md from the recorded results, or check them.

python benchmarks/make_tables.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from cost_tables import TABLES, TITLES
from statistics_tables import statistics
from study_tables import many_arms

from hf_early_ood.atomic import write_text
from hf_early_ood.names import ID_TEST, OOD_MACRO_MEAN, OOD_WORST, STUDY_FILE
from hf_early_ood.report.layout import signed, with_interval
from hf_early_ood.report.reading import split_label
from hf_early_ood.report.tables import first_release
from hf_early_ood.report.verdict import find_comparison, judge, ood_sets
from hf_early_ood.results import ArmRun, StudyRecord, read_study

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
STUDY = RESULTS / "sentiment_across_domains"
STUDIES = {"interventions": "sentiment_interventions", "intervals": "sentiment_random_intervals"}
"""Block of README.md -> folder of a recorded study of many arms."""
RECORD = """```bash
pip install -e ".[bench]"   # on a CPU: CPU builds of torch and torchvision first
for name in fisher peers scaling sharpness curvature ddp interventions; do python benchmarks/bench_$name.py; done
python benchmarks/bench_peers.py --device cuda --examples 64 --name bench_peers_gpu   # with a GPU
python benchmarks/bench_scaling.py --device cuda --name bench_scaling_gpu             # with a GPU
python benchmarks/bench_statistics.py
python benchmarks/make_tables.py
```"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a file is not up to date")
    options = parser.parse_args()
    readme, details = ROOT / "README.md", ROOT / "benchmarks" / "README.md"
    text = readme.read_text(encoding="utf-8")
    new = replaced(text, "results", results(read_study(STUDY / STUDY_FILE)))
    new = replaced(new, "statistics", statistics(record("bench_statistics"), True))
    for block, folder in STUDIES.items():
        new = replaced(new, f"results of {block}", many_arms(read_study(RESULTS / folder / STUDY_FILE), folder))
    for name, table in TABLES.items():
        new = replaced(new, f"costs of {name}", table(record(f"bench_{name}"), True) if recorded(name) else "")
    wanted = {readme: new, details: all_costs()}
    if options.check:
        return int(any(not path.exists() or path.read_text(encoding="utf-8") != new for path, new in wanted.items()))
    for path, new in wanted.items():
        write_text(path, new)
    return 0


def recorded(name: str) -> bool:
    """Whether a benchmark has a record from a CPU, which is what README.md shows."""
    return (RESULTS / f"bench_{name}.json").is_file()


def record(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def all_costs() -> str:
    """benchmarks/README.md: every row of every record, also of those from other devices (bench_peers_gpu.json)."""
    parts = [
        "# What is measured, and what it costs",
        "Written by `python benchmarks/make_tables.py` from `results/`. How time and memory are measured is in"
        " `harness.py`.",
        "To record all of it anew, on a machine that does nothing else:",
        RECORD,
    ]
    for name, table in TABLES.items():
        for path in sorted(RESULTS.glob(f"bench_{name}*.json")):
            found = record(path.stem)
            environment = found["environment"]
            versions = ", ".join(
                f"{package} {version}" for package, version in environment["packages"].items() if version
            )
            parts += [
                f"## {TITLES[name]}" + ("" if found["setting"]["device"] == "cpu" else f", {environment['device']}"),
                table(found, False),
                f"[Record](results/{path.name}): {environment['cpu']}, Python {environment['python']}, {versions}.",
            ]
    found = record("bench_statistics")
    parts += ["## Intervals and tests", statistics(found, False), "[Record](results/bench_statistics.json)."]
    return "\n\n".join(parts) + "\n"


def replaced(text: str, name: str, block: str) -> str:
    """``text`` with what stands between the two markers replaced."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if begin not in text or end not in text:
        raise SystemExit(f"README.md has no place for the table: {begin} {end}")
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{block}\n{end}{tail}"


def results(study: StudyRecord) -> str:
    """Mean over seeds with the range of seeds, and the paired difference."""
    (arm,) = (name for name in study.arms if name != study.baseline)
    rows = [f"| balanced accuracy, % | {study.baseline} | {arm} | difference [{study.confidence:.0%}] | |"]
    rows.append("|---|---|---|---|---|")
    for split in (ID_TEST, *ood_sets(study), OOD_MACRO_MEAN, OOD_WORST):
        found = find_comparison(study, arm, split)
        if found is None:
            continue
        scores = [over_seeds(study, name, split) for name in (study.baseline, arm)]
        difference = with_interval(found.difference, found.low, found.high, sign=True)
        rows.append(f"| {split_label(split)} | {scores[0]} | {scores[1]} | {difference} | {judge(found)} |")
    runs = study.arms[arm]
    probes = sum(run.probe_seconds or 0.0 for run in runs)
    extra = probes / (sum(run.seconds or 0.0 for run in runs) - probes)
    releases = sorted({str(first_release(run.intervention)) for run in runs}, key=int)
    early = all(
        run.intervention.decision.at_first_chance for run in runs if run.intervention and run.intervention.decision
    )
    mean = find_comparison(study, arm, OOD_MACRO_MEAN)
    old = "" if mean is None or mean.p_value is not None else " Its intervals are percentiles of a bootstrap."
    size = "" if mean is None else f" ({signed(mean.difference)} points on the mean of the OOD sets)"
    return "\n".join(
        [
            f"all-MiniLM-L6-v2 on tweets, {len(study.seeds)} seeds, mean over seeds with the lowest and the highest"
            f" seed; intervals over test examples and seeds. On this data set: **{judge(mean)}**{size}.",
            "",
            *rows,
            "",
            f"Layers were released from update {', '.join(releases)} of {runs[0].updates} on"
            f"{' (the first measurement that could decide)' if early else ''}. Deciding that took {extra:.1%} more time"
            " than the same interval fixed. (Wall times in the record are from a machine with other load.)",
            "",
            f"`{study.command}`, [record](benchmarks/results/{STUDY.name}/{STUDY_FILE})."
            + (
                " These intervals are percentiles of a bootstrap, narrower than those of today's reports."
                if old
                else ""
            ),
        ]
    )


def over_seeds(study: StudyRecord, arm: str, split: str) -> str:
    values = [value for run in study.arms[arm] if (value := score(run, study.metric, split)) is not None]
    return with_interval(sum(values) / len(values), min(values), max(values))


def score(run: ArmRun, metric: str, split: str) -> float | None:
    if run.evaluation is None:
        return None
    if split == OOD_MACRO_MEAN:
        return run.evaluation.ood[metric].macro_mean.value
    if split == OOD_WORST:
        return run.evaluation.ood[metric].worst.value
    return run.evaluation.splits[split].metrics[metric].value


if __name__ == "__main__":
    sys.exit(main())

"""Write the tables of README.md from the recorded results, or check that they are up to date.

python benchmarks/make_tables.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hf_early_ood.atomic import write_text
from hf_early_ood.names import ID_TEST, OOD_MACRO_MEAN, OOD_WORST, STUDY_FILE
from hf_early_ood.report.layout import signed, with_interval
from hf_early_ood.report.tables import first_release, split_label
from hf_early_ood.report.verdict import find_comparison, judge, ood_sets
from hf_early_ood.results import ArmRun, StudyRecord, read_study

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
STUDY = RESULTS / "sentiment_across_domains"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if README.md is not up to date")
    options = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    new = replaced(text, "results", results(read_study(STUDY / STUDY_FILE)))
    new = replaced(new, "costs", costs(json.loads((RESULTS / "bench_fisher.json").read_text(encoding="utf-8"))))
    if options.check:
        return 0 if new == text else 1
    write_text(readme, new)
    return 0


def replaced(text: str, name: str, block: str) -> str:
    """``text`` with what stands between the two markers replaced."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
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
            f"`{study.command}`, [record](benchmarks/results/{STUDY.name}/{STUDY_FILE}).",
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


def costs(record: dict) -> str:
    """Costs in full training steps."""
    setting, environment = record["setting"], record["environment"]
    rows = ["| | full training steps | goal |", "|---|---|---|"]
    for name, row in record["results"].items():
        goal = "" if row["goal"] is None else f"<= {row['goal']:.2f}"
        rows.append(f"| {name} | {row['ratio']:.2f} | {goal} |")
    return "\n".join(
        [
            f"MiniLM-L6 geometry ({setting['parameters'] / 1e6:.1f} M parameters), {setting['examples']} examples of up"
            f" to {setting['length']} tokens, {environment['threads']} thread, CPU time, median of ratios in one run"
            f" (`{environment['command']}`):",
            "",
            *rows,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())

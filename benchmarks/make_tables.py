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
from similarity_tables import similarity
from statistics_tables import statistics
from study_tables import depths, in_a_sentence, many_arms, replaceable, two_arms

from hf_early_ood.atomic import write_text
from hf_early_ood.names import STUDY_FILE
from hf_early_ood.results import read_study

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
INTENTS = "Eleven intents, learned in English; multilingual-e5-small (from 4-bit weights)"
PAIRS = {
    "results": ("sentiment_across_domains", "Sentiment, learned from tweets; all-MiniLM-L6-v2"),
    "results of intents": ("intents_across_languages", INTENTS),
}
"""Block of README.md -> folder of a recorded study of two arms, and what it is about."""
STUDIES = {
    "interventions": "sentiment_interventions",
    "intervals": "sentiment_random_intervals",
    "intervals across languages": "intents_random_intervals",
    "pretexts": "sentiment_pretext",
}
"""Block of README.md -> folder of a recorded study of many arms."""
RECORD = """```bash
pip install -e ".[bench]"   # on a CPU: CPU builds of torch and torchvision first
for name in fisher peers scaling sharpness curvature trajectory ddp interventions; do
  python benchmarks/bench_$name.py
done
python benchmarks/bench_peers.py --device cuda --examples 64 --name bench_peers_gpu   # with a GPU
python benchmarks/bench_scaling.py --device cuda --name bench_scaling_gpu             # with a GPU
python benchmarks/bench_statistics.py
python benchmarks/bench_similarity.py
python benchmarks/make_tables.py
```"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a file is not up to date")
    options = parser.parse_args()
    readme, details = ROOT / "README.md", ROOT / "benchmarks" / "README.md"
    text = readme.read_text(encoding="utf-8")
    new = replaced(text, "statistics", statistics(record("bench_statistics"), True))
    new = replaced(new, "similarity", similarity(record("bench_similarity"), True))
    for block, (folder, title) in PAIRS.items():
        new = replaced(new, block, two_arms(read_study(RESULTS / folder / STUDY_FILE), folder, title))
    lora = "intents_across_languages_lora"
    words = in_a_sentence(read_study(RESULTS / lora / STUDY_FILE), lora, "The same with LoRA")
    new = replaced(new, "results of intents with LoRA", words)
    for block, folder in STUDIES.items():
        new = replaced(new, f"results of {block}", many_arms(read_study(RESULTS / folder / STUDY_FILE), folder))
    depth = "sentiment_prediction_depth"
    new = replaced(new, "results of depth", depths(read_study(RESULTS / depth / STUDY_FILE), depth))
    layers = "replaceable_layers"
    new = replaced(new, "results of layers", replaceable(read_study(RESULTS / layers / STUDY_FILE), layers))
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
    found = record("bench_similarity")
    parts += ["## Similarity before training", similarity(found, False), "[Record](results/bench_similarity.json)."]
    return "\n\n".join(parts) + "\n"


def replaced(text: str, name: str, block: str) -> str:
    """``text`` with what stands between the two markers replaced."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if begin not in text or end not in text:
        raise SystemExit(f"README.md has no place for the table: {begin} {end}")
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{block}\n{end}{tail}"


if __name__ == "__main__":
    sys.exit(main())

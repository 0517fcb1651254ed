"""Launch a recipe, a single run or a study, with accelerate:

accelerate launch recipes/run.py --config recipes/sentiment_across_domains/standard.yaml [--key value ...]

Every key of the file can be given on the command line and wins over it, e.g. --training.learning_rate 2e-5.
It is the same as: accelerate launch -m hf_early_ood run|study FILE [--key value ...]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from hf_early_ood.cli import main


def launch() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="YAML file of a run or a study")
    options, rest = parser.parse_known_args()
    command = "run"
    if options.config.is_file():
        content = yaml.safe_load(options.config.read_text(encoding="utf-8"))
        command = "study" if isinstance(content, dict) and "study" in content else "run"
    return main([command, str(options.config), *rest])


if __name__ == "__main__":
    sys.exit(launch())

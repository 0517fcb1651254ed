"""Launch a recipe, a single run or a study, with accelerate:

accelerate launch recipes/run.py --config recipes/sentiment_across_domains/standard.yaml [--key value ...]

Every key of the file can be given on the command line and wins over it, e.g. --training.learning_rate 2e-5.
It is the same as: accelerate launch -m hf_early_ood run|study FILE [--key value ...]
"""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from pathlib import Path

from hf_early_ood.cli import leave, main
from hf_early_ood.config.loading import read_yaml
from hf_early_ood.config.parsing import Problems
from hf_early_ood.config.study import SECTION
from hf_early_ood.errors import ConfigurationError


def launch() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="YAML file of a run or a study")
    options, rest = parser.parse_known_args()
    command = "run"
    with suppress(ConfigurationError):  # the command says what is wrong
        command = "study" if SECTION in read_yaml(options.config, Problems()) else "run"
    return main([command, str(options.config), *rest])


if __name__ == "__main__":
    status = launch()
    leave()
    sys.exit(status)

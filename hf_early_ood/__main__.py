"""``python -m hf_early_ood`` and ``accelerate launch -m hf_early_ood``."""

import sys

from hf_early_ood.cli import leave, main

if __name__ == "__main__":
    status = main()
    leave()
    sys.exit(status)

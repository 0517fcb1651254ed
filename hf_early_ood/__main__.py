"""``python -m hf_early_ood`` and ``accelerate launch -m hf_early_ood``."""

import sys

from hf_early_ood.cli import main

if __name__ == "__main__":
    sys.exit(main())

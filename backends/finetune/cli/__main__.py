"""``python -m backends.finetune.cli``."""

import sys

from backends.finetune.cli import main

sys.exit(main())

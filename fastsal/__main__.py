"""``python -m fastsal``: the command line without its script."""

import sys

from fastsal.cli import main

sys.exit(main())

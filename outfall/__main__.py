"""Runs the command line for ``python -m outfall``."""

import sys

from outfall.adapters.commandline.main import main

sys.exit(main())

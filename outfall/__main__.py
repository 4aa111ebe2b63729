"""The command line by ``python -m outfall``."""

import sys

from outfall.adapters.commandline import main

sys.exit(main())

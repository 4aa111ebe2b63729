"""The command line by ``python -m outfall``."""

import sys

from outfall.adapters.commandline.main import main

sys.exit(main())

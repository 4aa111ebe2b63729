"""What each Python program that a test starts imports first: conftest.py puts this folder on its path.

For all of them rich is not installed: structlog imports it where it is, which takes as long as all else that such a
program imports, and there are hundreds.
"""

import sys

sys.modules["rich"] = None  # type: ignore[assignment]

"""`python -m dlrun`, the same as `dlrun`."""

import os
import sys

# Python has put the working directory in front, where a torch.py would be imported instead of torch.
if not sys.flags.safe_path and sys.path[0] in ("", os.getcwd()):  # noqa: PTH109
    del sys.path[0]

from dlrun.cli.main import run

if __name__ == "__main__":
    sys.exit(run())

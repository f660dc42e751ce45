"""`python -m tokenpool.cli`, for launchers such as torchrun."""

import sys

from tokenpool.cli import main

if __name__ == "__main__":
    sys.exit(main())

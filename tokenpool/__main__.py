"""`python -m tokenpool`: the command line."""

import sys

from tokenpool.cli import main

if __name__ == "__main__":
    sys.exit(main())

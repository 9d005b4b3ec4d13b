"""`python -m coder`: the same as `nec`."""

import sys

from coder.cli import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m coder"))

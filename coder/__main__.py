"""`python -m coder`: inspect, check, decode and make blobs, codec files and archives."""

import sys

from coder.cli.file_commands import main

if __name__ == "__main__":
    sys.exit(main())

"""Where the files are that tests read."""

from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
GOLDEN = TESTS / "golden"
KEPT = TESTS / "kept"
EXAMPLES = ROOT / "examples"

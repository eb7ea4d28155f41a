"""Where things are in a checkout."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))

#: The program under test; `make test` builds this profile.
ATOLL = Path(os.environ.get("ATOLL_BIN", TARGET / "debug" / "atoll"))

#: Which test stack this is. Several people, or suites, at once each take a number of their own.
STACK = int(os.environ.get("ATOLL_TEST_STACK", "0"))

#: The data directory of the test stack. Kept between runs: the base template is made once.
DATA_DIR = TARGET / (f"test-data-{STACK}" if STACK else "test-data")

LOGS = TARGET / (f"test-logs-{STACK}" if STACK else "test-logs")

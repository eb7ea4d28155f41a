"""Where things are in a checkout."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))

#: The program under test; `make test` builds this profile.
ATOLL = Path(os.environ.get("ATOLL_BIN", TARGET / "debug" / "atoll"))

#: The data directory of the test stack. Kept between runs: the base template is made once.
DATA_DIR = TARGET / "test-data"

LOGS = TARGET / "test-logs"

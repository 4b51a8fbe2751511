"""Command `python -m common.model_report`. The code is in common/inspect/model_report.py."""

from __future__ import annotations

import sys

from common.inspect.model_report import main

if __name__ == "__main__":
    sys.exit(main())

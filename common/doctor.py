"""Command `python -m common.doctor`. The code is in common/inspect/doctor.py."""

from __future__ import annotations

import sys

from common.inspect.doctor import main

if __name__ == "__main__":
    sys.exit(main())

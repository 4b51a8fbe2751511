"""Command `python -m data.convert_detector`. The code is in data/regions/convert_detector.py."""

from __future__ import annotations

import sys

from data.regions.convert_detector import main

if __name__ == "__main__":
    sys.exit(main())

"""Command `python -m data.random_detector`. The code is in data/regions/random_detector.py."""

from __future__ import annotations

import sys

from data.regions.random_detector import main

if __name__ == "__main__":
    sys.exit(main())

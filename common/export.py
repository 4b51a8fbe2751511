"""Command `python -m common.export`. The code is in common/predict/export_cli.py."""

from __future__ import annotations

import sys

from common.predict.export_cli import main

if __name__ == "__main__":
    sys.exit(main())

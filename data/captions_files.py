"""Command `python -m data.captions_files`. The code is in data/captions/files.py."""

from __future__ import annotations

import sys

from data.captions.files import main

if __name__ == "__main__":
    sys.exit(main())

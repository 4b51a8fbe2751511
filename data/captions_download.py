"""Command `python -m data.captions_download`. The code is in data/captions/download.py."""

from __future__ import annotations

import sys

from data.captions.download import main

if __name__ == "__main__":
    sys.exit(main())

"""Command `python -m data.random_backbone`. The code is in data/regions/random_backbone.py."""

from __future__ import annotations

from data.regions.random_backbone import main

if __name__ == "__main__":
    main()

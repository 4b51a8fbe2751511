"""Command `python -m data.scenes`. The code is in data/scenes/generate.py."""

from __future__ import annotations

from data.scenes.generate import main

if __name__ == "__main__":
    main()

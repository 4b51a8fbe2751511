"""A folder of the user's images with files of records, and the data set that is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from common.config import load_config
from common.task import load_task
from data.own.__main__ import main

COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "t-shirt": (250, 250, 250)}
NAMES = ["a/x.png", "b/x.jpg", "a/my photo.webp", "2.jpg"]
SHAPES = ["--boxes", "module:data.scenes.regions", "--encoder", "module:data.scenes.regions"]


class Own:
    """Four images, each with a rectangle of a colour. out: the data set."""

    def __init__(self, root: Path, task: str, records: list[dict[str, Any]]) -> None:
        self.root, self.task, self.out = root, task, root / "mine"
        for index, (name, color) in enumerate(zip(NAMES, COLORS.values(), strict=True)):
            image = Image.new("RGB", (80 + index, 60), (255, 255, 180))
            ImageDraw.Draw(image).rectangle((20, 20, 50, 45), fill=color)
            (root / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
            image.save(root / "photos" / name)
        self.write(records)

    def write(self, rows: list[dict[str, Any]], name: str = "train.jsonl") -> Path:
        (self.root / name).write_text("\n".join(json.dumps(row) for row in rows) + "\n")
        return self.root / name

    def run(self, *options: str, records: str = "train.jsonl") -> int:
        paths = ["--input", str(self.root / records), "--images", str(self.root / "photos"), "--out", str(self.out)]
        return main([self.task, *paths, *options])

    def config(self, file: str | None = None) -> Any:
        return load_config(self.task, self.out / (file or f"{self.task}.yaml"))

    def dataset(self, split: str, file: str | None = None) -> Any:
        return load_task(self.task).build_dataset(self.config(file), split)

    def ids(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "ids.jsonl").read_text().splitlines()]

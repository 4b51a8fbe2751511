from __future__ import annotations

import io
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import pytest
from PIL import Image


def png(mode: str = "RGB", size: tuple[int, int] = (4, 3), color: object = None) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, color or 0).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path: Path) -> str:
    path = tmp_path / "set.zip"
    with ZipFile(path, "w", ZIP_STORED) as file:
        file.writestr("set/a.png", png(color=(10, 20, 30)))
        file.writestr("set/deep/b.png", png())
        file.writestr("set/note.txt", b"hello")
        file.writestr("settle.png", png())
    return str(path)

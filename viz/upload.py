"""Uploads of the live page: from the bytes of any image file to the PNG that the page keeps.

`decode_apart` decodes in a process of its own, with limits of CPU time and memory: a file of some kilobytes may cost a
decoder minutes and gigabytes. `python -m viz.upload SECONDS BYTES` is that process. It reads the file from stdin and
writes the PNG to stdout, or an error with exit status REFUSED.
"""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageOps

from common.files.images import as_rgb

log = logging.getLogger(__name__)

MAX_PIXELS = 50_000_000  # of an image before it is reduced
MAX_SIDE = 1600  # pixels of a kept image; models resize it further
MIN_SIDE = 8
MAX_CPU = 20  # seconds of decoding
MAX_MEMORY = 3 * 2**30  # bytes of address space
MAX_WALL = 120  # seconds, on a busy machine
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")  # no EPS: it starts a program
REFUSED = 3  # exit status


class RequestError(Exception):
    """A request that cannot be answered as it is. status: of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def decode_apart(data: bytes) -> bytes:
    """`read_image` in a process of its own. Raises RequestError, also for a file that takes too long to decode."""
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "viz.upload", str(MAX_CPU), str(MAX_MEMORY)],
            input=data,
            capture_output=True,
            env=environment,
            timeout=MAX_WALL,
        )
    except subprocess.TimeoutExpired as error:
        raise RequestError(503, "the machine is too busy to decode this image: try again in a moment") from error
    if done.returncode == 0:
        return done.stdout
    if done.returncode == REFUSED:
        raise RequestError(**json.loads(done.stdout))
    log.warning("upload of %d bytes: exit status %d: %s", len(data), done.returncode, done.stderr[-500:])
    raise RequestError(415, f"this file of {len(data)} bytes takes more time or memory to decode than there is here")


def read_image(data: bytes) -> bytes:
    """The PNG to keep of an upload: upright, RGB, the first frame, at most MAX_SIDE. Raises RequestError."""
    if not data:
        raise RequestError(400, "an empty file: expected an image")
    try:
        Image.init()
        image: Image.Image = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
        if image.width * image.height > MAX_PIXELS:
            raise RequestError(413, f"an image of {image.width} x {image.height} pixels: at most 50 million fit here")
        image.draft("RGB", (MAX_SIDE, MAX_SIDE))  # a JPEG may be decoded at a reduced size
        image = as_rgb(ImageOps.exif_transpose(image))
    except (RequestError, MemoryError):
        raise
    except Exception as error:  # decoders raise errors of any type on damaged files
        raise RequestError(
            415, f"this file of {len(data)} bytes is no image that can be read here, or it is cut off"
        ) from error
    if min(image.size) < MIN_SIDE:
        raise RequestError(
            400, f"an image of {image.width} x {image.height} pixels: expected at least {MIN_SIDE} a side"
        )
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    if min(image.size) < 2:
        raise RequestError(400, "this image is too narrow: nothing is left of it after resizing")
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def main(cpu: int, memory: int) -> int:
    """cpu: seconds. memory: bytes of address space. Returns the exit status."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        sys.stdout.buffer.write(read_image(sys.stdin.buffer.read()))
    except RequestError as error:
        print(json.dumps({"status": error.status, "message": str(error)}))
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))

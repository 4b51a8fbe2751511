"""A page in the browser: from an image, boxes and a text to answers, what they depend on, and the attention.

python -m viz.serve --ckpt FILE            then open the address that it prints

It listens on this machine alone, unless --host names another address. The newest images stay in memory.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.cli import guarded
from common.predict.cli import PredictorOptions, add_predictor_arguments

if TYPE_CHECKING:
    from flask import Flask

    from common.predict.predictor import Predictor

log = logging.getLogger(__name__)

MAX_UPLOAD = 20 * 2**20  # bytes of a file
MAX_PIXELS = 50_000_000  # of an image before it is reduced
MAX_SIDE = 1600  # pixels of a kept image; models resize it further
MIN_SIDE = 8
MAX_IMAGES = 32
MAX_BODY = 2**20  # bytes of a question
MAX_WORDS = 100
MAX_BOXES = 100
MAX_SLOTS = 220  # beyond that the attention is not sent: 12 x 12 maps of 220 slots are 14 MB
MAX_WAITING = 8  # questions in the queue of the model
TOP_ANSWERS = 5


class RequestError(Exception):
    """A request that cannot be answered as it is. status: of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Gallery:
    """The newest images by name, at most `limit`. Safe for threads."""

    def __init__(self, limit: int = MAX_IMAGES) -> None:
        self._limit, self._lock = limit, threading.Lock()
        self._images: OrderedDict[str, bytes] = OrderedDict()

    def add(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()[:24]
        with self._lock:
            self._images[name] = data
            self._images.move_to_end(name)
            while len(self._images) > self._limit:
                self._images.popitem(last=False)
        return name

    def get(self, name: Any) -> bytes:
        """The PNG of an image. Raises RequestError for an image that is no longer kept."""
        with self._lock:
            if not isinstance(name, str) or name not in self._images:
                raise RequestError(404, "this image is no longer kept here: give it again")
            self._images.move_to_end(name)
            return self._images[name]


class Turnstile:
    """Passes one question at a time to the model. A few wait; entering with a full queue raises RequestError."""

    def __init__(self, waiting: int = MAX_WAITING) -> None:
        self._places, self._model = threading.BoundedSemaphore(waiting), threading.Lock()

    def __enter__(self) -> None:
        if not self._places.acquire(blocking=False):
            raise RequestError(503, "the model is busy: try again in a moment")
        self._model.acquire()

    def __exit__(self, *error: object) -> None:
        self._model.release()
        self._places.release()


def read_image(data: bytes) -> bytes:
    """The PNG to keep of an upload: upright, RGB, the first frame, at most MAX_SIDE. Raises RequestError."""
    from PIL import Image, ImageOps

    if not data:
        raise RequestError(400, "an empty file: expected an image")
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise RequestError(413, f"an image of {image.width} x {image.height} pixels: at most 50 million fit here")
        frames = getattr(image, "n_frames", 1)
        image.draft("RGB", (MAX_SIDE, MAX_SIDE))  # a JPEG may be decoded at a reduced size
        image = ImageOps.exif_transpose(image)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        image = image.convert("RGB")
    except RequestError:
        raise
    except Exception as error:  # decoders raise errors of any type on damaged files
        log.info("upload of %d bytes: %s", len(data), error)
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
    if frames > 1:
        log.info("an animation of %d frames: taking the first", frames)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


class Service:
    """The requests of the page, without HTTP."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.gallery = Gallery()
        self.turnstile = Turnstile()

    def about(self) -> dict[str, Any]:
        p = self.predictor
        return {
            "task": p.task,
            "model": p.source.name,
            "device": str(p.device),
            "text": p.text_field,
            "fields": [vars(f) for f in p.fields if f.kind != "json"],
        }

    def add(self, data: bytes) -> dict[str, Any]:
        """Keep an upload. Returns its name and size, and boxes with labels if there is a source of boxes.

        The boxes are not rounded: features are known for exactly these boxes.
        """
        import torch

        from common.predict.predictor import INPUT_ERRORS

        png = read_image(data)
        name = self.gallery.add(png)
        boxes = torch.zeros(0, 4)
        with self.turnstile:
            image = self.predictor.images.open(png)
            if self.predictor.images.source is not None:
                try:
                    boxes = self.predictor.images.regions(image).boxes[:MAX_BOXES]
                except INPUT_ERRORS as error:
                    log.info("no boxes: %s", error)
            labels = self.predictor.images.labels(image, boxes)
        size = image.pixels.size
        return {
            "image": name,
            "width": size[0],
            "height": size[1],
            "boxes": boxes.tolist(),
            "labels": labels,
        }

    def ask(self, body: Any) -> dict[str, Any]:
        """The best answers, the answers with the keys `also` at any rank, and the capture for the viewer.

        body: {"image", "boxes", "fields": {...}, "attention": bool, "also": [keys]}. Raises RequestError.
        """
        from common.predict.predictor import INPUT_ERRORS
        from viz.capture import make_capture

        if not isinstance(body, dict) or not isinstance(body.get("fields"), dict):
            raise RequestError(400, 'expected {"image", "boxes", "fields"}')
        png, boxes, fields = self.gallery.get(body.get("image")), body.get("boxes"), body["fields"]
        if not isinstance(boxes, list) or len(boxes) > MAX_BOXES:
            raise RequestError(400, f"boxes: expected a list of at most {MAX_BOXES}")
        for name, value in fields.items():
            words = sum(len(str(v).split()) for v in (value if isinstance(value, list) else [value]))
            if words > MAX_WORDS:
                raise RequestError(400, f"{name} of {words} words: this page takes up to {MAX_WORDS}")
        also = body.get("also") or []
        with self.turnstile:
            try:
                prediction = self.predictor(
                    png, boxes=boxes, attention=bool(body.get("attention")), top_k=10**6, **fields
                )
            except INPUT_ERRORS as error:
                raise RequestError(400, str(error)) from error
            except TypeError as error:
                raise RequestError(400, f"fields: {error}") from error
        answers = [{**a, "key": answer_key(a)} for a in prediction.answers]
        prediction.answers = _best(answers)
        capture = None
        if len(prediction.slots) > MAX_SLOTS:
            prediction.notes.append(f"{len(prediction.slots)} words and boxes: too many to show their attention here")
        elif prediction.attention is not None:
            text = str(fields.get(self.predictor.text_field, ""))
            capture = make_capture(prediction, None, "", self.predictor.task, self.predictor.source.name, text)
        return {
            "answers": prediction.answers,
            "also": [a for a in answers if a["key"] in also],
            "regions": prediction.regions,
            "notes": prediction.notes,
            "capture": capture,
        }


def answer_key(answer: dict[str, Any]) -> str:
    """A key of an answer. The same answer to two questions, which differ in boxes or words, has the same key."""
    if "box" in answer:
        return json.dumps([round(x) for x in answer["box"]])
    if "index" in answer:
        return f"choice {answer['index']}"
    return f"{answer.get('mask', '')}:{answer['answer']}"


def _best(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first TOP_ANSWERS answers for each mask."""
    best: list[dict[str, Any]] = []
    for answer in answers:
        if sum(a.get("mask") == answer.get("mask") for a in best) < TOP_ANSWERS:
            best.append(answer)
    return best


def create_app(service: Service, hosts: Sequence[str] = ("localhost", "127.0.0.1")) -> Flask:
    """The page and its interface.

    hosts: host names that requests may use, empty for any. The check stops DNS rebinding, where a foreign page points a
    name of its own at this machine.
    """
    from flask import Flask, Response, jsonify, request, send_from_directory
    from werkzeug.exceptions import HTTPException

    static = Path(__file__).parent / "static"
    app = Flask(__name__, static_folder=str(static), static_url_path="/static")
    app.config["MAX_CONTENT_LENGTH"] = MAX_UPLOAD

    @app.before_request
    def check_host() -> None:
        if hosts and request.host.rpartition(":")[0].strip("[]") not in hosts and request.host not in hosts:
            raise RequestError(403, f"this page is not served as {request.host}")

    @app.after_request
    def close_doors(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = (
            "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
        )
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.errorhandler(RequestError)
    def request_error(error: RequestError) -> tuple[Response, int]:
        return jsonify(error=str(error)), error.status

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> tuple[Response, int]:
        text = f"more than {MAX_UPLOAD // 2**20} MB: too large" if error.code == 413 else str(error.description)
        return jsonify(error=text), error.code or 500

    @app.errorhandler(Exception)
    def server_error(error: Exception) -> tuple[Response, int]:
        log.exception("request failed")
        return jsonify(error="something failed here; see the log of the server"), 500

    @app.get("/")
    def page() -> Response:
        return send_from_directory(static, "page.html")

    @app.get("/api/about")
    def about() -> Response:
        return jsonify(service.about())

    @app.post("/api/image")
    def image() -> Response:
        return jsonify(service.add(request.get_data(cache=False)))

    @app.get("/api/image/<name>")
    def show_image(name: str) -> Response:
        return Response(service.gallery.get(name), mimetype="image/png")

    @app.post("/api/ask")
    def ask() -> Response:
        if (request.content_length or 0) > MAX_BODY:
            raise RequestError(413, "a question of more than 1 MB: too large")
        return jsonify(service.ask(request.get_json()))

    return app


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m viz.serve", description=__doc__.split("\n")[0])
    add_predictor_arguments(parser)
    parser.add_argument("--task", help="task of a checkpoint that does not name it")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args(argv)
    return guarded(serve, PredictorOptions.from_args(args, args.task), args.host, args.port)


def serve(options: PredictorOptions, host: str, port: int) -> None:
    """Serve the page until the process ends. Raises ConfigError without flask and waitress, or for a port in use."""
    from common.errors import ConfigError

    try:
        from waitress import create_server
    except ImportError as error:
        raise ConfigError("the page needs flask and waitress: pip install flask waitress") from error

    logging.getLogger().setLevel(logging.INFO)
    service = Service(options.load())
    local = host in ("127.0.0.1", "localhost", "::1")
    app = create_app(service, ("localhost", "127.0.0.1", "::1") if local else ())
    try:
        server = create_server(app, host=host, port=port, threads=8, max_request_body_size=2 * MAX_UPLOAD)
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: {error}") from error
    about = service.about()
    print(
        f"{about['task']} {about['model']} on {about['device']}: http://{host}:{server.effective_port}/",
        flush=True,
    )
    server.run()


if __name__ == "__main__":
    sys.exit(main())

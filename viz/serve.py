"""A page in the browser: from an image, boxes and a text to answers, what they depend on, and the attention.

python -m viz.serve --ckpt FILE            then open the address that it prints

It listens on this machine alone, unless --host names another address. The newest images stay in memory.
"""

from __future__ import annotations

import argparse
import hashlib
import ipaddress
import json
import logging
import socket
import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from common.cli import guarded
from common.predict.cli import PredictorOptions, add_predictor_arguments
from viz.upload import RequestError, decode_apart

if TYPE_CHECKING:
    from flask import Flask
    from waitress.server import BaseWSGIServer

    from common.predict.predictor import Predictor

log = logging.getLogger(__name__)

MAX_UPLOAD = 20 * 2**20  # bytes of a file
MAX_IMAGES = 32
MAX_BODY = 2**20  # bytes of a question
MAX_WORDS = 100
MAX_CHARACTERS = 5000  # of a text; 1 MB of punctuation would be a million word pieces
MAX_CHOICES = 16
MAX_MASKS = 10
MAX_BOXES = 100
MAX_SLOTS = 220  # beyond that the attention is not sent: 12 x 12 maps of 220 slots are 14 MB
MAX_WAITING = 8  # questions in the queue of the model
MAX_DECODING = 3  # uploads in the queue of the decoder
# All that wait, the two that are computed, and some that no other request can take away: for light requests, and for
# refusing further ones.
THREADS = MAX_WAITING + MAX_DECODING + 2 + 4
MAX_CONNECTIONS = 900
SILENCE = 20  # seconds after which a connection without a whole request is closed
TOP_ANSWERS = 5
CHOICES = ("answers", "rationales")  # fields with a text sequence for each of their texts
SCHEMES = ("http", "https")  # a proxy may add TLS
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


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
    """Lets one request at a time through. `waiting` more may wait; entering with a full queue raises RequestError.

    what: what is behind it, for the error.
    """

    def __init__(self, waiting: int = MAX_WAITING, what: str = "the model") -> None:
        self._places, self._inside = threading.BoundedSemaphore(waiting + 1), threading.Lock()
        self._what = what

    def __enter__(self) -> None:
        if not self._places.acquire(blocking=False):
            raise RequestError(503, f"{self._what} is busy: try again in a moment")
        self._inside.acquire()

    def __exit__(self, *error: object) -> None:
        self._inside.release()
        self._places.release()


class Service:
    """The requests of the page, without HTTP."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.gallery = Gallery()
        self.turnstile = Turnstile()
        self.decoder = Turnstile(MAX_DECODING, "the decoder of images")

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

        The boxes are not rounded: features are known for exactly these boxes. Raises RequestError.
        """
        import torch

        from common.predict.predictor import INPUT_ERRORS

        with self.decoder:
            png = decode_apart(data)
        name = self.gallery.add(png)
        boxes = torch.zeros(0, 4)
        with self.turnstile:
            image = self.predictor.images.open(png)
            try:
                self.predictor.inputs.check_size(image)
            except INPUT_ERRORS as error:
                raise RequestError(400, str(error)) from error
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
        known = [f.name for f in self.predictor.fields]
        for name, value in fields.items():
            if name not in known:
                raise RequestError(400, f"{name:.100}: unknown; expected {', '.join(known)}")
            check_length(name, value)
        also = body.get("also") or []
        if not isinstance(also, list) or not all(isinstance(key, str) for key in also):
            raise RequestError(400, "also: expected a list of keys")
        with self.turnstile:
            try:
                prediction = self.predictor(
                    png, boxes=boxes, attention=bool(body.get("attention")), top_k=10**6, **fields
                )
            except INPUT_ERRORS as error:
                raise RequestError(400, str(error)) from error
        wanted = set(also)
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
            "also": [a for a in answers if a["key"] in wanted],
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
    counts: Counter[Any] = Counter()
    for answer in answers:
        counts[answer.get("mask")] += 1
        if counts[answer.get("mask")] <= TOP_ANSWERS:
            best.append(answer)
    return best


def check_length(name: str, value: Any) -> None:
    """Raises RequestError for a value of a field that costs the model too much time."""
    values = value if isinstance(value, list) else [value]
    texts = [v if isinstance(v, str) else json.dumps(v) for v in values]
    words, characters = sum(len(text.split()) for text in texts), sum(map(len, texts))
    masks = sum(text.count("[MASK]") for text in texts)
    if words > MAX_WORDS:
        raise RequestError(400, f"{name} of {words} words: this page takes up to {MAX_WORDS}")
    if characters > MAX_CHARACTERS:
        raise RequestError(400, f"{name} of {characters} characters: this page takes up to {MAX_CHARACTERS}")
    if masks > MAX_MASKS:
        raise RequestError(400, f"{name} with {masks} [MASK]: this page takes up to {MAX_MASKS}")
    if name in CHOICES and len(values) > MAX_CHOICES:
        raise RequestError(400, f"{name}: {len(values)} choices: this page takes up to {MAX_CHOICES}")


def host_of(netloc: str) -> str:
    """The host name of "name:port", lower case, "" for what is none."""
    try:
        return urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""


def is_address(host: str) -> bool:
    """Whether a host is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def create_app(service: Service, hosts: Sequence[str] = LOCAL_HOSTS, addresses: bool = False) -> Flask:
    """The page and its interface.

    hosts: host names that requests may use. addresses: whether requests may use any IP address too. The check stops DNS
    rebinding, where a foreign page points a name of its own at this machine; it cannot do that with an address.
    A POST must come from the page itself: a browser sends Origin, and a foreign page cannot change it.
    """
    from flask import Flask, Response, jsonify, request, send_from_directory
    from werkzeug.exceptions import HTTPException

    static = Path(__file__).parent / "static"
    app = Flask(__name__, static_folder=str(static), static_url_path="/static")
    app.config["MAX_CONTENT_LENGTH"] = MAX_UPLOAD

    @app.before_request
    def check_host() -> None:
        host = host_of(request.host)
        if host not in hosts and not (addresses and is_address(host)):
            raise RequestError(403, f"this page is not served as {request.host}; --name allows a host name")

    @app.before_request
    def check_origin() -> None:
        origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site", "none")
        foreign = origin is not None and origin.lower() not in (f"{s}://{request.host}".lower() for s in SCHEMES)
        if request.method not in ("GET", "HEAD") and (foreign or site not in ("same-origin", "none")):
            raise RequestError(403, f"a request of the page {origin or 'of another site'}: expected one of this page")

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

    @app.errorhandler(RecursionError)
    def too_deep(error: RecursionError) -> tuple[Response, int]:
        return jsonify(error="the JSON is nested too deeply"), 400

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
    parser.add_argument(
        "--name",
        nargs="+",
        action="extend",
        default=[],
        help="further names by which browsers reach the page, such as that of a proxy",
    )
    args = parser.parse_args(argv)
    return guarded(serve, PredictorOptions.from_args(args, args.task), args.host, args.port, args.name)


def make_server(service: Service, host: str, port: int, names: Sequence[str] = ()) -> BaseWSGIServer:
    """The server of the page; its `run` serves. names: further host names of requests. A `host` that is not
    local adds itself, the name of this machine and all IP addresses.

    Raises ConfigError without flask and waitress, or for a port in use.
    """
    from common.errors import ConfigError

    try:
        from waitress import create_server
    except ImportError as error:
        raise ConfigError("the page needs flask and waitress: pip install flask waitress") from error

    local, own = host in LOCAL_HOSTS, socket.gethostname()
    reached = () if local else (host, own, f"{own}.local")
    hosts = [name.lower() for name in (*LOCAL_HOSTS, *reached, *names)]
    try:
        return create_server(
            create_app(service, hosts, addresses=not local),
            host=host,
            port=port,
            threads=THREADS,
            max_request_body_size=2 * MAX_UPLOAD,
            connection_limit=MAX_CONNECTIONS,
            asyncore_use_poll=True,
            channel_timeout=SILENCE,
            cleanup_interval=5,
        )
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: {error}") from error


def server_port(server: BaseWSGIServer) -> int:
    """The port of a server. One of a host name with several addresses has a socket for each."""
    return int(server.effective_port if hasattr(server, "effective_port") else server.effective_listen[0][1])


def serve(options: PredictorOptions, host: str, port: int, names: Sequence[str] = ()) -> None:
    """Serve the page until the process ends. Raises as `make_server` and `load_predictor` do."""
    logging.getLogger().setLevel(logging.INFO)
    service = Service(options.load())
    server = make_server(service, host, port, names)
    about = service.about()
    print(
        f"{about['task']} {about['model']} on {about['device']}: http://{host}:{server_port(server)}/",
        flush=True,
    )
    server.run()


if __name__ == "__main__":
    sys.exit(main())

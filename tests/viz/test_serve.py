"""The interface of the live page: answers, and errors for wrong requests."""

from __future__ import annotations

import hashlib
import io
import json
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.GifImagePlugin import GifImageFile

pytest.importorskip("flask", reason="flask is not installed: the live page was not tested")

from tests.labelled import LABELS, labelled_predictor, save_labelled
from tests.tiny import QUESTION
from viz import upload
from viz.serve import (
    MAX_IMAGES,
    MAX_WAITING,
    Gallery,
    Service,
    Turnstile,
    create_app,
    make_server,
    server_port,
)
from viz.upload import RequestError, decode_apart, read_image


@pytest.fixture
def service(vqa_predictor) -> Service:
    return Service(vqa_predictor)


@pytest.fixture
def client(service):
    return create_app(service).test_client()


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int = 60, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def status(address: str, body: dict | None = None, host: str | None = None) -> int:
    """The HTTP status of a GET, or of a POST of JSON. host: the header."""
    headers = {"Content-Type": "application/json", **({"Host": host} if host else {})}
    request = urllib.request.Request(address, body and json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


@contextmanager
def running(service: Service, host: str = "127.0.0.1", names: Sequence[str] = ()) -> Iterator[str]:
    """A server in a thread of this process. Yields its address."""
    server = make_server(service, host, 0, names)
    threading.Thread(target=server.run, daemon=True).start()
    yield f"http://127.0.0.1:{server_port(server)}"
    server.close()


def question(client, file: Path, **changes) -> dict:
    given = client.post("/api/image", data=file.read_bytes()).get_json()
    return {"image": given["image"], "boxes": given["boxes"], "fields": {"question": QUESTION}, **changes}


class TestAnswers:
    def test_they_are_the_predictors(self, client, vqa_predictor, image):
        body = question(client, image, attention=True)
        got = client.post("/api/ask", json=body).get_json()
        expected = vqa_predictor(str(image), question=QUESTION, boxes=body["boxes"], attention=True)
        assert [(a["answer"], a["probability"]) for a in got["answers"]] == [
            (a["answer"], a["probability"]) for a in expected.answers
        ]
        assert got["capture"]["size"] == len(expected.slots) and got["capture"]["image"]["src"] is None

    def test_also_gives_answers_of_any_rank(self, client, image):
        body = question(client, image)
        best = client.post("/api/ask", json=body).get_json()["answers"]
        fewer = {**body, "boxes": body["boxes"][1:], "also": [a["key"] for a in best]}
        also = client.post("/api/ask", json=fewer).get_json()["also"]
        assert {a["key"] for a in also} == {a["key"] for a in best}

    def test_a_box_that_is_taken_away_costs_no_encoding(self, client, service, image):
        body = question(client, image)
        client.post("/api/ask", json=body)
        before = service.predictor.images.num_extracted
        client.post("/api/ask", json={**body, "boxes": body["boxes"][:1]})
        assert service.predictor.images.num_extracted == before

    def test_about(self, client):
        about = client.get("/api/about").get_json()
        assert about["task"] == "vqa" and about["text"] == "question" and about["fields"][0]["name"] == "question"

    def test_the_page_and_its_parts_are_there(self, client):
        page = client.get("/")
        assert page.status_code == 200 and "default-src 'self'" in page.headers["Content-Security-Policy"]
        for name in ("viewer.js", "viewer.css", "page.js", "page.css"):
            assert f"static/{name}" in page.text and client.get(f"/static/{name}").status_code == 200


class TestBoxesOfAStore:
    """The store has an upload under the name that the predictor gives its bytes."""

    @pytest.fixture
    def labelled(self, vqa_ckpt, image, tmp_path) -> Service:
        png = read_image(image.read_bytes())
        (tmp_path / "upload.png").write_bytes(png)
        save_labelled(tmp_path / "store", tmp_path / "upload.png", hashlib.sha256(png).hexdigest()[:12])
        return Service(labelled_predictor(vqa_ckpt, tmp_path / "store"))

    def test_they_come_with_labels(self, labelled, image):
        given = labelled.add(image.read_bytes())
        assert len(given["boxes"]) == 4 and given["labels"] == LABELS

    def test_asking_about_them_finds_their_features(self, labelled, image):
        client = create_app(labelled).test_client()
        answers = client.post("/api/ask", json=question(client, image, attention=True)).get_json()
        assert labelled.predictor.images.num_extracted == 0
        assert answers["capture"]["labels"] == ["", *LABELS]

    def test_a_moved_box_loses_its_label(self, labelled, image):
        client = create_app(labelled).test_client()
        body = question(client, image, attention=True)
        body["boxes"][1][0] += 1
        capture = client.post("/api/ask", json=body).get_json()["capture"]
        assert capture["labels"] == ["", LABELS[0], "", *LABELS[2:]]


class TestUploads:
    @pytest.mark.parametrize(
        ("data", "status", "message"),
        [
            (b"", 400, "empty file"),
            (b"hello", 415, "no image"),
            (encoded(noise(), "JPEG")[:300], 415, "cut off"),
            (encoded(noise())[:-2000], 415, "cut off"),
            (encoded(noise(4, 4)), 400, "at least 8"),
            (encoded(Image.new("L", (8000, 8000))), 413, "8000 x 8000"),
            (encoded(Image.new("L", (40000, 10))), 400, "too narrow"),
        ],
    )
    def test_bad_ones_get_an_error(self, client, data, status, message):
        response = client.post("/api/image", data=data)
        assert response.status_code == status and message in response.get_json()["error"]

    def test_too_many_bytes(self, client):
        response = client.post("/api/image", data=b"x" * (20 * 2**20 + 1))
        assert response.status_code == 413 and "20 MB" in response.get_json()["error"]

    def test_turned_by_its_orientation(self, client):
        exif = Image.Exif()
        exif[0x0112] = 6
        got = client.post("/api/image", data=encoded(noise(), "JPEG", exif=exif)).get_json()
        assert (got["width"], got["height"]) == (40, 60)
        shown = Image.open(io.BytesIO(client.get(f"/api/image/{got['image']}").data))
        assert shown.size == (40, 60)

    def test_an_animation_and_a_see_through_image(self):
        frames = [Image.new("RGB", (20, 20), c) for c in ("red", "blue")]
        data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
        assert Image.open(io.BytesIO(read_image(data))).getpixel((3, 3)) == (255, 0, 0)
        data = encoded(Image.new("RGBA", (20, 20), (9, 9, 9, 0)))
        assert Image.open(io.BytesIO(read_image(data))).getpixel((3, 3)) == (255, 255, 255)

    @pytest.mark.parametrize(("limit", "value"), [("MAX_CPU", 0), ("MAX_MEMORY", 300 * 2**20)])
    def test_decoding_has_limits_of_time_and_memory(self, monkeypatch, limit, value):
        monkeypatch.setattr(upload, limit, value)
        with pytest.raises(RequestError, match="more time or memory"):
            decode_apart(encoded(Image.new("RGBA", (7000, 7000))))

    def test_the_frames_of_an_animation_are_not_counted(self, monkeypatch):
        """Counting reads the whole file, 15 s for 20 MB."""
        frames = [Image.new("RGB", (20, 20), c) for c in ("red", "blue")]
        data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
        monkeypatch.setattr(GifImageFile, "n_frames", property(lambda image: pytest.fail("the frames are counted")))
        assert Image.open(io.BytesIO(read_image(data))).size == (20, 20)

    def test_formats_that_start_programs_are_refused(self):
        with pytest.raises(RequestError, match="no image"):
            read_image(encoded(noise(), "EPS"))

    def test_one_that_the_model_cannot_resize(self, client):
        response = client.post("/api/image", data=encoded(Image.new("RGB", (12000, 8))))
        assert response.status_code == 400 and "narrow" in response.get_json()["error"]

    def test_a_huge_one_is_made_smaller(self):
        data = encoded(Image.new("RGB", (5000, 4000), "red"), "JPEG")
        assert Image.open(io.BytesIO(read_image(data))).size == (1600, 1280)


class TestQuestions:
    @pytest.mark.parametrize(
        ("changes", "status", "message"),
        [
            ({"fields": {"question": ""}}, 400, "question: expected a text"),
            ({"fields": {"question": "   "}}, 400, "question: expected a text"),
            ({"fields": {}}, 400, "question: missing"),
            ({"fields": {"question": "word " * 10000}}, 400, "question of 10000 words: this page takes up to 100"),
            ({"fields": {"question": 7}}, 400, "question: expected a text"),
            ({"fields": {"question": "a", "color": "b"}}, 400, "color: unknown"),
            ({"fields": {"question": "a", "top_k": 3}}, 400, "top_k"),
            ({"fields": None}, 400, 'expected {"image"'),
            ({"boxes": "all"}, 400, "boxes: expected a list"),
            ({"boxes": [[0, 0, 5, 5]] * 101}, 400, "at most 100"),
            ({"boxes": [[0, 0, 5]]}, 400, "rows of"),
            ({"boxes": [[0, 0, 5, "x"]]}, 400, "expected a list of"),
            ({"image": "gone"}, 404, "no longer kept"),
            ({"image": ["a"]}, 404, "no longer kept"),
            ({"image": "\ud800"}, 404, "no longer kept"),
            ({"fields": {"question": "a\ud800"}}, 400, "lone surrogate"),
            ({"fields": {"question": "!" * 5001}}, 400, "5001 characters"),
            ({"fields": {"question": "[MASK] " * 11}}, 400, "11 [MASK]"),
            ({"fields": {"question": "a", "hidden_states": True}}, 400, "hidden_states: unknown"),
            ({"fields": {"question": "a", "image": "b"}}, 400, "image: unknown"),
            ({"boxes": [[1e30, 0, 2e30, 5]]}, 400, "outside of the image"),
            ({"boxes": [[0, 0, 10**400, 5]]}, 400, "expected a list of"),
            ({"boxes": [[float("nan"), 0, 1, 5]]}, 400, "boxes[0]"),
            ({"also": 5}, 400, "also: expected a list"),
            ({"also": [["a"]]}, 400, "also: expected a list"),
        ],
    )
    def test_bad_ones_get_an_error(self, client, image, changes, status, message):
        response = client.post("/api/ask", json=question(client, image, **changes))
        assert response.status_code == status and message in response.get_json()["error"]

    def test_no_boxes_leave_the_whole_image(self, client, image):
        assert len(client.post("/api/ask", json=question(client, image, boxes=[])).get_json()["answers"]) == 5

    def test_no_json_too_much_of_it_and_nothing_there(self, client):
        assert client.post("/api/ask", data="x").status_code == 415
        assert client.post("/api/ask", data="{", content_type="application/json").status_code == 400
        big = client.post("/api/ask", data=b" " * 2**21, content_type="application/json")
        assert big.status_code == 413 and "1 MB" in big.get_json()["error"]
        assert client.get("/nothing").status_code == 404

    @pytest.mark.parametrize("where", ["fields", "boxes", "also", "image"])
    def test_no_value_is_a_fault_of_the_server(self, client, image, where):
        """JSON of any shape is answered or refused. A fault would be 500."""
        given = question(client, image)
        odd: list = [None, True, 0, -1, 1e30, 10**400, "", "a\0b", "\udfff", [], [[]], [None], [{}], {}, {"a": [1]}]
        odd += [[[0, 0, "1", 1]], [[0, 0, 1e30, 1e30]], [["a"] * 4], [[1, 2], [3]], {"question": ["a"]}]
        odd += [{"question": {"a": 1}}, {"question": None}, {"question": "a", "": 1}, {"question": [[["a"]]]}]
        for value in odd:
            response = client.post("/api/ask", json={**given, where: value})
            assert response.status_code in (200, 400, 404), (where, value, response.get_data(as_text=True))

    @pytest.mark.parametrize(
        "body", [b"[" * 100_000, b'{"image":' * 50_000, b"\xff\xfe{", b"1" * 5000, b'{"fields": "\xff"}', b"NaN", b""]
    )
    def test_what_is_no_json_for_a_question(self, client, body):
        assert client.post("/api/ask", data=body, content_type="application/json").status_code == 400

    def test_a_value_nested_as_deep_as_json_may_be(self, client, image):
        text = json.dumps(question(client, image)).replace(json.dumps(QUESTION), "[" * 800 + "]" * 800)
        assert client.post("/api/ask", data=text, content_type="application/json").status_code == 400


class TestOtherSites:
    """A foreign page neither reads nor writes here."""

    @pytest.mark.parametrize("host", ["evil.example:8000", "10.0.0.5", "localhost.evil.example", "[::", ""])
    def test_other_names_of_this_machine_are_refused(self, client, host):
        assert client.get("/", headers={"Host": host}).status_code in (400, 403)

    @pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "[::1]:8000"])
    def test_its_own_names(self, client, host):
        assert client.get("/", headers={"Host": host}).status_code == 200

    def test_with_host_addresses_and_names_that_are_given(self, service):
        expected = {"10.0.0.5:8000": 200, "[fe80::1]:8000": 200, f"{socket.gethostname()}:8000": 200}
        expected |= {"demo.example": 200, "evil.example:8000": 403}
        with running(service, "0.0.0.0", ["Demo.example"]) as address:
            assert {host: status(f"{address}/api/about", host=host) for host in expected} == expected

    @pytest.mark.parametrize(
        "headers",
        [
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://localhost:8001"},
            {"Origin": "http://localhost.evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        ],
    )
    def test_their_uploads_and_questions_are_refused(self, client, image, headers):
        for path in ("/api/image", "/api/ask"):
            assert client.post(path, data=image.read_bytes(), headers=headers).status_code == 403

    def test_the_page_itself_is_no_other_site(self, client, image):
        headers = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
        assert client.post("/api/image", data=image.read_bytes(), headers=headers).status_code == 200


class TestFaults:
    def test_a_fault_is_no_traceback(self, client, service, image, monkeypatch):
        body = question(client, image)
        monkeypatch.setattr(type(service.predictor), "run", lambda *a, **k: 1 / 0)
        response = client.post("/api/ask", json=body)
        assert response.status_code == 500 and "something failed" in response.get_json()["error"]
        monkeypatch.undo()
        assert client.post("/api/ask", json=body).status_code == 200  # and the model is free again


class TestManyUsers:
    def test_at_once_they_all_get_their_own_answers(self, service, client, image, tmp_path):
        body = question(client, image)
        texts = ["what color is it?", "how many circles are there?", QUESTION] * 6
        alone = {t: client.post("/api/ask", json={**body, "fields": {"question": t}}).get_json() for t in set(texts)}
        app = create_app(service)

        def ask(text: str):
            return app.test_client().post("/api/ask", json={**body, "fields": {"question": text}})

        with ThreadPoolExecutor(6) as pool:
            got = list(pool.map(ask, texts))
        for text, response in zip(texts, got, strict=True):
            assert response.status_code == 200 and response.get_json()["answers"] == alone[text]["answers"]

    def test_too_many_are_sent_away(self):
        turnstile, entered, leave = Turnstile(0), threading.Event(), threading.Event()

        def stay() -> None:
            with turnstile:
                entered.set()
                leave.wait(10)

        thread = threading.Thread(target=stay)
        thread.start()
        entered.wait(10)
        with pytest.raises(RequestError, match="busy"), turnstile:
            pass
        leave.set()
        thread.join()
        with turnstile:
            pass

    def test_light_requests_do_not_wait_and_further_questions_are_refused(self, service, client, image):
        """The model is held until all but the waiting questions are refused."""
        body, extra = question(client, image), 20
        with running(service) as address, ThreadPoolExecutor(MAX_WAITING + extra) as pool:
            with service.turnstile:
                asked = [pool.submit(status, f"{address}/api/ask", body) for _ in range(MAX_WAITING + extra)]
                refused = [done.result() for _, done in zip(range(extra), as_completed(asked, 60), strict=False)]
                assert refused == [503] * extra
                assert status(f"{address}/api/about") == status(f"{address}/") == 200
            assert sorted(future.result(60) for future in asked) == [200] * MAX_WAITING + [503] * extra

    def test_only_the_newest_images_are_kept(self):
        gallery = Gallery()
        names = [gallery.add(bytes([i])) for i in range(MAX_IMAGES + 1)]
        assert gallery.get(names[-1]) == bytes([MAX_IMAGES])
        with pytest.raises(RequestError, match="no longer kept"):
            gallery.get(names[0])


def test_the_page_asks_for_addresses_that_there_are(client):
    script = client.get("/static/page.js").get_data(as_text=True)
    addresses = set(re.findall(r"[\"`](api/[a-z]+)", script))
    routes = {rule.rule.split("/<")[0].lstrip("/") for rule in client.application.url_map.iter_rules()}
    assert addresses == {"api/about", "api/image", "api/ask"} and addresses <= routes

"""Report and live page in a real browser: the shown numbers are those of the arrays.

Needs Playwright and a Chromium, which `make test-browser` installs. Skipped without them.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from tests.labelled import LABELS, labelled_predictor, save_labelled
from tests.tiny import QUESTION
from viz.capture import make_capture
from viz.report import render_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: nothing was tested in a browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: nothing was tested in a browser")
waitress = pytest.importorskip("waitress", reason="no waitress: the live page was not tested")

from viz.serve import Service, create_app  # noqa: E402
from viz.upload import read_image  # noqa: E402


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser) -> Iterator[playwright.Page]:
    """An empty page. An error in a script fails the test."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(15000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert errors == []


@pytest.fixture(scope="module")
def shown(vqa_predictor, image):
    """A prediction with its attention [layers, heads, S, S]."""
    return vqa_predictor(str(image), question=QUESTION, attention=True)


@pytest.fixture
def report(tab, shown, image, tmp_path) -> playwright.Page:
    requests: list[str] = []
    tab.on("request", lambda request: requests.append(request.url))
    file = tmp_path / "report.html"
    file.write_text(render_report([make_capture(shown, Image.open(image), "a report", "vqa", "m", QUESTION)]))
    tab.goto(file.as_uri())
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    return tab


def weights(page: playwright.Page, size: int) -> np.ndarray:
    """The weight that every slot shows, NaN for none."""
    found = page.eval_on_selector_all(
        ".viewer > :not(.pins) [data-slot]",
        "nodes => nodes.map(n => [Number(n.dataset.slot), Number(n.dataset.weight)])",
    )
    out = np.full(size, np.nan)
    for slot, weight in found:
        out[slot] = weight
    return out


def until(page: playwright.Page, condition: str) -> None:
    """Wait for a JavaScript condition. The page's policy forbids `eval`, which Playwright's own waiting uses."""
    for _ in range(300):
        if page.evaluate(f"Boolean({condition})"):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"it never came true: {condition}")


def slot_of(shown, text: str) -> int:
    return next(i for i, s in enumerate(shown.slots) if s.text == text)


class TestReport:
    def test_hovering_a_word_shows_what_it_attends_to(self, report, shown):
        slot = slot_of(shown, "color")
        report.hover(f".word[data-slot='{slot}']")
        expected = shown.attention[1, 0, slot].numpy()
        assert np.abs(weights(report, len(expected)) - expected).max() < 2e-5
        regions = [i for i, s in enumerate(shown.slots) if s.kind == "region"]
        fills = [opacity(report, i) for i in regions]
        np.testing.assert_allclose(fills, 0.5 * expected[regions] / expected.max(), atol=3e-3)

    def test_hovering_a_box_shows_words_and_boxes(self, report, shown):
        slot = next(i for i, s in enumerate(shown.slots) if s.kind == "region")
        report.click("text=attended by")
        report.dispatch_event(f".box[data-slot='{slot}']", "pointerenter")
        assert np.abs(weights(report, len(shown.slots)) - shown.attention[1, 0, :, slot].numpy()).max() < 2e-5
        report.dispatch_event(f".box[data-slot='{slot}']", "pointerleave")
        assert np.isnan(weights(report, len(shown.slots))).all()

    def test_nothing_moves_under_the_pointer(self, report, shown):
        place = "nodes => nodes.map(n => [n.getBoundingClientRect().x, n.getBoundingClientRect().y])"
        still = report.eval_on_selector_all(".word, .box, .cell", place)
        for slot in (1, slot_of(shown, "circle")):
            report.hover(f".word[data-slot='{slot}']")
            assert report.eval_on_selector_all(".word, .box, .cell", place) == still

    def test_mean_and_rollout(self, report, shown):
        slot = slot_of(shown, "circle")
        report.click(f".word[data-slot='{slot}']")
        report.click("text=mean of the layer")
        mean = shown.attention.mean(1).double().numpy()
        assert np.abs(weights(report, len(mean[0])) - mean[1, slot]).max() < 3e-5
        report.click("text=rollout")
        mixed = (mean + np.eye(len(mean[0]))) / 2
        assert np.abs(weights(report, len(mean[0])) - (mixed[1] @ mixed[0])[slot]).max() < 3e-5

    @pytest.mark.parametrize(("choice", "source", "target"), [(0, "word", "region"), (1, "region", "word")])
    def test_the_grid_is_coloured_by_shares(self, report, shown, choice, source, target):
        report.select_option("select[aria-label='colour of the grid']", str(choice))
        of = {"word": [s.kind == "word" for s in shown.slots], "region": [s.box is not None for s in shown.slots]}
        expected = shown.attention[:, :, of[source]][..., of[target]].sum(-1).mean(-1).flatten().numpy()
        found = report.eval_on_selector_all(".cell", "cells => cells.map(c => Number(c.dataset.share))")
        assert np.abs(np.array(found) - expected).max() < 3e-5
        lightness = report.eval_on_selector_all(
            ".cell", "cells => cells.map(c => c.style.background.match(/\\d+/g).map(Number).reduce((a, b) => a + b))"
        )
        assert np.argmax(lightness) == np.argmax(expected)

    def test_by_keyboard_alone(self, report, shown):
        report.keyboard.press("Tab")  # boxes
        assert report.evaluate("document.activeElement.getAttribute('aria-label')") == "whole image"
        report.keyboard.press("ArrowRight")
        assert report.evaluate("document.activeElement.getAttribute('aria-label')") == "box 1"
        report.keyboard.press("Tab")  # words
        report.keyboard.press("ArrowRight")
        assert report.evaluate("document.activeElement.dataset.slot") == "1"
        assert np.abs(weights(report, len(shown.slots)) - shown.attention[1, 0, 1].numpy()).max() < 2e-5
        report.keyboard.press("Enter")
        report.keyboard.press("p")
        assert report.locator(".pin").count() == 1
        report.focus(".cell.chosen")
        report.keyboard.press("ArrowUp")
        report.keyboard.press("ArrowRight")
        assert "(layer 0, head 1)" in report.inner_text(".readout")  # of the word that was kept
        assert np.abs(weights(report, len(shown.slots)) - shown.attention[0, 1, 1].numpy()).max() < 2e-5
        report.keyboard.press("Escape")
        assert "Point at" in report.inner_text(".readout")

    def test_pins_stay_as_they_were(self, report, shown):
        for head in (0, 1):
            report.click(f".cell[data-layer='0'][data-head='{head}']")
            report.click(".word[data-slot='2']")
            report.click("text=Pin this view")
            report.keyboard.press("Escape")
        pinned = report.eval_on_selector_all(
            ".pin", "pins => pins.map(p => Number(p.querySelector(\".word[data-slot='3']\").dataset.weight))"
        )
        assert np.abs(np.array(pinned) - shown.attention[0, :, 2, 3].numpy()).max() < 2e-5
        report.click(".pin >> nth=0 >> button")
        assert report.locator(".pin").count() == 1

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_can_be_read_in_both_schemes(self, browser, report, scheme):
        report.emulate_media(color_scheme=scheme)
        contrasts = report.evaluate(
            CONTRAST, [".viewer h2", ".viewer .dim", ".word", ".readout", "footer", ".cell ~ .axis"]
        )
        assert min(contrasts) >= 4.5, contrasts

    def test_what_attention_does_not_tell_is_said(self, report):
        assert "not why the model answers as it does" in report.inner_text("footer")


def opacity(page: playwright.Page, slot: int) -> float:
    fill = page.eval_on_selector(f".box[data-slot='{slot}'] .face", "n => getComputedStyle(n).fill")
    return float(fill.rstrip(")").split(",")[3]) if fill.startswith("rgba") else 1.0


CONTRAST = """selectors => selectors.map(selector => {
  const rgb = c => c.match(/[\\d.]+/g).map(Number);
  const linear = x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
  const node = document.querySelector(selector);
  let back = node;
  while (rgb(getComputedStyle(back).backgroundColor)[3] === 0) back = back.parentElement;
  const [a, b] = [getComputedStyle(node).color, getComputedStyle(back).backgroundColor].map(c => light(rgb(c)));
  return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
})"""


@contextmanager
def served(service: Service) -> Iterator[str]:
    """The address of the page of a service."""
    server = waitress.create_server(create_app(service), host="127.0.0.1", port=0, threads=4)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.effective_port}/"
    server.close()


@pytest.fixture(scope="module")
def address(vqa_predictor) -> Iterator[str]:
    with served(Service(vqa_predictor)) as found:
        yield found


@pytest.fixture
def live(tab, address, image) -> playwright.Page:
    """The page with an image and its boxes."""
    return with_image(tab, address, image)


def with_image(page: playwright.Page, address: str, image) -> playwright.Page:
    page.goto(address)
    page.wait_for_selector("input[name=question]")
    page.set_input_files("#file", image)
    page.wait_for_selector(".drawn")
    return page


def ask(page: playwright.Page, text: str) -> dict[str, float]:
    page.fill("input[name=question]", text)
    with page.expect_response("**/api/ask"):
        page.click("button[type=submit]")
    until(page, "!document.querySelector('#answers[aria-busy]')")
    return answers(page)


def answers(page: playwright.Page) -> dict[str, float]:
    rows = page.eval_on_selector_all(
        ".answer", "rows => rows.map(r => [r.dataset.key.slice(1), Number(r.dataset.probability)])"
    )
    return dict(rows)


def boxes(page: playwright.Page) -> list[list[float]]:
    return page.eval_on_selector_all(
        ".drawn",
        """nodes => nodes.sort((a, b) => a.dataset.box - b.dataset.box).map(n => {
          const [x, y, w, h] = ["x", "y", "width", "height"].map(k => Number(n.querySelector(".face").getAttribute(k)));
          return [x, y, x + w, y + h]; })""",
    )


class TestLivePage:
    def test_answers_are_the_models(self, live, vqa_predictor, image):
        expected = vqa_predictor(str(image), question=QUESTION, boxes=boxes(live))
        assert ask(live, QUESTION) == pytest.approx({a["answer"]: a["probability"] for a in expected.answers}, abs=1e-5)
        assert live.locator("#viewer .cell").count() == 4

    def test_without_a_word_the_probabilities_change_at_once(self, live, vqa_predictor, image):
        before = ask(live, QUESTION)
        with live.expect_response("**/api/ask"):
            live.click("[data-word='1']")
        live.wait_for_selector(".answer b")
        words = QUESTION.split()
        shorter = " ".join(w for i, w in enumerate(words) if i != 1)
        expected = vqa_predictor(str(image), question=shorter, boxes=boxes(live), top_k=10**6)
        now = {a["answer"]: a["probability"] for a in expected.answers}
        after = answers(live)
        assert {k: after[k] for k in before} == pytest.approx({k: now[k] for k in before}, abs=1e-5)
        assert "words" not in live.inner_text("#message")

    def test_without_a_box(self, live, vqa_predictor, image):
        given = boxes(live)
        before = ask(live, QUESTION)
        with live.expect_response("**/api/ask"):
            live.click("[data-chip='0']")
        live.wait_for_selector(".drawn.absent")
        live.wait_for_selector(".answer b")
        expected = vqa_predictor(str(image), question=QUESTION, boxes=given[1:], top_k=10**6)
        now = {a["answer"]: a["probability"] for a in expected.answers}
        after = answers(live)
        assert {k: after[k] for k in before} == pytest.approx({k: now[k] for k in before}, abs=1e-5)
        names = live.eval_on_selector_all("#viewer .box", "nodes => nodes.map(n => n.getAttribute('aria-label'))")
        assert "box 1" not in names and "box 2" in names
        with live.expect_response("**/api/ask"):
            live.click("#restore")
        until(live, "!document.querySelector('.answer b') && document.querySelector('.answer')")
        assert answers(live) == pytest.approx(before)

    def test_boxes_are_drawn_moved_and_deleted(self, live):
        count = len(boxes(live))
        live.click("#clear-boxes")
        assert boxes(live) == []
        area = live.locator("#stage svg").bounding_box()
        x, y = area["x"] + area["width"] / 2, area["y"] + area["height"] / 2
        live.mouse.move(x, y)
        live.mouse.down()
        live.mouse.move(x + 60, y + 40, steps=4)
        live.mouse.up()
        (drawn,) = boxes(live)
        assert count > 1 and drawn[2] - drawn[0] > 4
        live.mouse.move(x + 20, y + 20)
        live.mouse.down()
        live.mouse.move(x + 10, y + 5, steps=4)
        live.mouse.up()
        (moved,) = boxes(live)
        assert moved[0] < drawn[0] and moved[2] - moved[0] == pytest.approx(drawn[2] - drawn[0])
        until(live, "document.activeElement.dataset.box === '0'")
        live.keyboard.press("ArrowDown")
        until(live, "document.activeElement.dataset.box === '0'")
        live.keyboard.press("Shift+ArrowRight")
        until(live, "document.activeElement.dataset.box === '0'")
        (pressed,) = boxes(live)
        assert pressed[1] > moved[1] and pressed[2] - pressed[0] > moved[2] - moved[0]
        assert len(ask(live, QUESTION)) == 5
        live.focus(".drawn")
        live.keyboard.press("Delete")
        assert boxes(live) == [] and live.locator(".answer").count() == 0
        live.click("#add-box")
        assert len(boxes(live)) == 1

    def test_what_is_wrong_is_said_and_the_page_goes_on(self, live, tmp_path, image):
        (tmp_path / "no.jpg").write_bytes(b"this is text")
        live.set_input_files("#file", tmp_path / "no.jpg")
        until(live, "document.querySelector('#message').textContent.includes('no image')")
        live.click("button[type=submit]")
        assert "Give an image first" in live.inner_text("#message")
        live.set_input_files("#file", image)
        live.wait_for_selector(".drawn")
        live.click("button[type=submit]")
        assert "type something first" in live.inner_text("#message")
        ask(live, "word " * 10000)
        assert "10000 words" in live.inner_text("#message")
        assert len(ask(live, "<img src=x onerror=alert(1)> what color?")) == 5
        assert live.locator("#viewer img, #word-chips img").count() == 0


NAMED = ["1 " + LABELS[0], "2 " + LABELS[1], "3", "4 " + LABELS[3]]

# Whether two texts on boxes cover each other, or one is cut by the image's edge.
COVERED = """area => {
  const rects = [...document.querySelectorAll(`${area} .texts text`)].map(t => t.getBoundingClientRect());
  const image = document.querySelector(`${area} svg image`).getBoundingClientRect();
  const cover = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom - 4 && b.top < a.bottom - 4;
  return rects.some((a, i) => a.right > image.right + 1 || rects.some((b, k) => i < k && cover(a, b))); }"""


@pytest.fixture(scope="module")
def labelled(vqa_ckpt, image, tmp_path_factory):
    """A predictor with a store of LABELS, and the image's PNG, which the store has under the name of its bytes."""
    folder, png = tmp_path_factory.mktemp("labelled"), read_image(image.read_bytes())
    (folder / "upload.png").write_bytes(png)
    save_labelled(folder / "store", folder / "upload.png", hashlib.sha256(png).hexdigest()[:12])
    return labelled_predictor(vqa_ckpt, folder / "store"), png


class TestLabels:
    """Names of classes and attributes on boxes."""

    @pytest.fixture
    def page(self, tab, labelled, image) -> Iterator[playwright.Page]:
        with served(Service(labelled[0])) as address:
            yield with_image(tab, address, image)

    @pytest.fixture
    def report(self, tab, labelled, image, tmp_path) -> playwright.Page:
        predictor, png = labelled
        capture = make_capture(predictor(png, question=QUESTION, attention=True), Image.open(image), "a report")
        (tmp_path / "report.html").write_text(render_report([capture]))
        tab.goto((tmp_path / "report.html").as_uri())
        return tab

    def test_on_the_page_beside_the_numbers_and_in_the_chips(self, page):
        assert texts(page, "#stage .texts text") == NAMED
        ask(page, QUESTION)
        assert texts(page, "[data-chip]") == [f"box {name}" for name in NAMED]
        assert texts(page, "#viewer .texts text") == ["image", *NAMED]

    def test_without_a_box_the_others_keep_theirs(self, page):
        ask(page, QUESTION)
        with page.expect_response("**/api/ask"):
            page.click("[data-chip='0']")
        page.wait_for_selector(".answer b")
        assert texts(page, "#viewer .texts text") == ["image", *NAMED[1:]]
        assert page.get_attribute("#stage [data-text='0']", "class") == "absent"

    def test_a_moved_box_has_none(self, page):
        page.focus("[data-box='1']")
        page.keyboard.press("ArrowDown")
        assert texts(page, "#stage .texts text") == [NAMED[0], "2", *NAMED[2:]]

    def test_in_the_report(self, report):
        assert texts(report, ".texts text") == ["image", *NAMED]
        report.focus(".box[aria-label^='box 1 ']")
        assert report.get_attribute(".box.selected", "aria-label") == f"box 1 {LABELS[0]}"
        assert f"box 1 ({LABELS[0]})" in report.inner_text(".readout")
        assert [t.split()[-1] for t in texts(report, ".texts text")] == ["%"] * 5  # the weights took their place

    @pytest.mark.parametrize("size", [{"width": 1280, "height": 800}, {"width": 390, "height": 844}])
    def test_no_text_covers_another_one_or_is_cut(self, browser, tab, size):
        """Thirty boxes with labels, so close together that not all of them fit."""
        tab.set_viewport_size(size)
        places = np.random.default_rng(0).uniform(0, 1, (30, 2)) ** 0.7
        found = [[500 * x, 380 * y, 500 * x + 100, 380 * y + 90] for x, y in places]

        class Crowded(Service):
            def about(self) -> dict:
                return {"task": "vqa", "model": "m", "device": "cpu", "text": "question", "fields": []}

            def add(self, data: bytes) -> dict:
                labels = [f"red dog {i / 30:.2f}" for i in range(30)]
                return {"image": self.gallery.add(data), "width": 640, "height": 480, "boxes": found, "labels": labels}

        with served(Crowded(None)) as address:
            tab.goto(address)
            until(tab, "document.querySelector('#about').textContent")
            png = read_image(gray_png())
            tab.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": png})
            tab.wait_for_selector(".drawn")
            shown = [t for t in texts(tab, "#stage .texts text") if "dog" in t]
            assert 3 < len(shown) < 30
            tab.eval_on_selector_all("#stage .texts text", KEEP_LABELS)
            assert not tab.evaluate(COVERED, "#stage")


# Numbers cover each other where boxes start at the same place; labels must not.
KEEP_LABELS = "nodes => nodes.filter(n => !n.textContent.includes(' ')).forEach(n => n.remove())"


def gray_png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (640, 480), "gray").save(file, "PNG")
    return file.getvalue()


def texts(page: playwright.Page, selector: str) -> list[str]:
    return page.eval_on_selector_all(selector, "nodes => nodes.map(n => n.textContent)")


class TestOtherTasks:
    """Mentions of a box keep their box when another one is taken away."""

    @pytest.fixture
    def asked(self, tab, image) -> Iterator[tuple[playwright.Page, list[dict]]]:
        """A page of VCR whose service records its requests."""
        calls: list[dict] = []

        class Noting(Service):
            def about(self) -> dict:
                fields = [{"name": n, "help": "", "kind": k, "required": n != "hide"} for n, k in KINDS.items()]
                return {"task": "vcr", "model": "m", "device": "cpu", "text": "question", "fields": fields}

            def ask(self, body: dict) -> dict:
                calls.append(body)
                answers = [
                    {"answer": a, "index": i, "probability": 0.5, "key": f"choice {i}"} for i, a in enumerate("ab")
                ]
                return {"answers": answers, "also": answers, "regions": [], "notes": [], "capture": None}

            def add(self, data: bytes) -> dict:
                boxes = [[10.0 * i, 10, 10.0 * i + 9, 40] for i in range(3)]
                return {"image": "p", "width": 60, "height": 50, "boxes": boxes}

        server = waitress.create_server(create_app(Noting(None)), host="127.0.0.1", port=0, threads=4)
        threading.Thread(target=server.run, daemon=True).start()
        tab.goto(f"http://127.0.0.1:{server.effective_port}/")
        tab.wait_for_selector("input[name=question]")
        tab.set_input_files("#file", image)
        tab.wait_for_selector(".drawn")
        texts = {"question": "Why [3] ?", "objects": "person\ndog\ncat", "answers": "[1,3] is\n[3] .", "hide": "1, 2"}
        for name, text in texts.items():
            tab.fill(f"[name={name}]", text)
        tab.click("button[type=submit]")
        tab.wait_for_selector(".answer")
        yield tab, calls
        server.close()

    def test_numbers_follow_their_boxes(self, asked):
        page, calls = asked
        page.click("[data-chip='1']")
        page.wait_for_selector(".answer b")
        assert calls[1]["fields"] == {
            "question": "Why [2] ?",
            "objects": ["person", "cat"],
            "answers": ["[1,2] is", "[2] ."],
            "hide": [1],
        }
        assert len(calls[1]["boxes"]) == 2

    def test_a_box_that_a_text_mentions_cannot_go(self, asked):
        page, calls = asked
        page.click("[data-chip='2']")
        until(page, "document.querySelector('#message').textContent.includes('mentioned')")
        assert len(calls) == 1 and page.locator("[aria-pressed='true'][data-chip]").count() == 0


KINDS = {"question": "text", "objects": "texts", "answers": "texts", "hide": "numbers"}

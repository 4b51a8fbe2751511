"""Captures, and the report page that holds them."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from common.predict.prediction import Prediction, Slot
from tests.paths import ROOT
from tests.tiny import QUESTION
from viz.attention import main
from viz.capture import make_capture
from viz.report import render_report


def prediction(layers: int, heads: int, slots: int) -> Prediction:
    attention = torch.rand(layers, heads, slots, slots).softmax(-1)
    sequence = [Slot("word", f"w{i}", i) for i in range(slots)]
    return Prediction([], [], [], (640, 480), sequence, attention=attention)


def viewer_scale() -> int:
    """The divisor by which the viewer decodes a weight."""
    (scale,) = re.findall(r"getUint16\(.*?\) / (\d+)", (ROOT / "viz/static/viewer.js").read_text())
    return int(scale)


def weights(capture: dict) -> np.ndarray:
    """[layers, heads, size, size], decoded as the viewer does."""
    numbers = np.frombuffer(base64.b64decode(capture["attention"]), "<u2")
    return numbers.reshape(capture["layers"], capture["heads"], capture["size"], capture["size"]) / viewer_scale()


def test_weights_survive_the_capture():
    shown = prediction(2, 3, 7)
    capture = make_capture(shown, None, "title")
    assert np.abs(weights(capture) - shown.attention.numpy()).max() <= 0.5 / 65535 + 1e-7
    assert np.abs(weights(capture).sum(-1) - 1).max() < 7 / 65535


def test_needs_attention():
    shown = prediction(1, 1, 2)
    shown.attention = None
    with pytest.raises(ValueError, match="attention=True"):
        make_capture(shown, None, "title")


def test_a_base_model_with_sixty_tokens_stays_under_5_mb():
    noise = Image.effect_noise((1000, 800), 80).convert("RGB")
    page = render_report([make_capture(prediction(12, 12, 65), noise, "base")])
    assert len(page.encode()) < 5e6


def test_the_page_is_whole_and_safe():
    capture = make_capture(prediction(1, 1, 2), Image.new("RGB", (4, 4)), "</title><script>alert(1)</script>")
    capture["text"] = "</script><script>alert(2)</script>"
    page = render_report([capture])
    assert "alert(1)</script>" not in page and "alert(2)</script>" not in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page) and "@import" not in page
    data = re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    assert json.loads(data[1])["text"] == capture["text"]


def test_the_command_writes_a_report(vqa_ckpt, image, tmp_path, capsys):
    out = tmp_path / "r.html"
    arguments = ["--ckpt", str(vqa_ckpt), "--image", str(image), "-o", str(out), "--device", "cpu"]
    assert main([*arguments, "--text", QUESTION]) == 0
    capture = json.loads(re.search(r'application/json">(.*?)</script>', out.read_text(), re.DOTALL)[1])
    assert (capture["layers"], capture["heads"], capture["task"]) == (2, 2, "vqa")
    assert [s["text"] for s in capture["slots"][:2]] == ["[CLS]", "what"] and capture["slots"][-1]["kind"] == "end"
    assert capture["image"]["src"].startswith("data:image/jpeg;base64,")
    assert capture["title"] == f"{image.name}: {QUESTION}" and set(capture["labels"]) == {""}
    assert main([*arguments, "--text", "  "]) == 1
    assert main([*arguments, "--text", "a", "--field", "nothing"]) == 1

"""Answers a question with an exported VQA model, without PyTorch and without this repository.

pip install numpy pillow tokenizers onnxruntime
python onnx_example.py MODEL.onnx --image photo.jpg --regions photo.json --question "what color is the dog?"

MODEL: the file that `python -m common.export -o MODEL.onnx` writes, or a folder with model.onnx. Everything that the
model needs beside the regions is in the metadata of the file. --regions: a region file of the image, as
`python -m data.extract_features` writes it.
"""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

RESERVED = 6  # positions of the sequence that the question cannot use


def answer(model: Path, image: Path, regions: Path, question: str, top_k: int = 5) -> list[tuple[str, float]]:
    """The best answers with their probabilities, best first."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    steps = json.loads(about["preprocessing"])
    given = {**visual_inputs(image, regions, steps), **text_inputs(question, about["vocabulary"].split("\n"), steps)}
    (logits,) = session.run(["label_logits"], {i.name: given[i.name] for i in session.get_inputs()})
    probabilities = 1 / (1 + np.exp(-logits[0].astype(np.float64)))  # [answers]
    answers = about["answers"].split("\n")
    return [(answers[i], float(probabilities[i])) for i in np.argsort(-probabilities, kind="stable")[:top_k]]


def visual_inputs(image: Path, file: Path, steps: dict[str, Any]) -> dict[str, np.ndarray]:
    """Boxes in pixels of the resized image and their features, of one image (B = 1)."""
    record = json.loads(file.read_text(encoding="utf-8"))
    boxes, features = decoded(record["boxes"], 4), decoded(record["features"], 2048)  # [R, 4], [R, 2048]
    with Image.open(image) as opened:
        width, height = opened.size  # as stored, without EXIF orientation: the boxes are for these pixels
    if (width, height) != (record["image_w"], record["image_h"]):
        raise SystemExit(f"{file}: regions of another image: {record['image_w']}x{record['image_h']}")
    if steps["image_is_first_box"]:
        whole = record.get("image_box_feature")
        mean = features.mean(0, keepdims=True) if whole is None else decoded(whole, 2048)
        boxes = np.concatenate([np.array([[0, 0, width - 1, height - 1]], np.float32), boxes])
        features = np.concatenate([mean, features])
    new = resized(width, height, steps["short_side"], steps["longest_side"])
    ratios = np.array([new[0] / width, new[1] / height], np.float32)
    limits = np.array([new[0] - 1, new[1] - 1] * 2, np.float32)
    boxes = np.clip(boxes * np.tile(ratios, 2), 0, limits)
    return {
        "boxes": boxes[None].astype(np.float32),
        "box_mask": np.ones((1, len(boxes)), bool),
        "im_info": np.array([[*new, *ratios]], np.float32),
        "features": features[None].astype(np.float32),
    }


def text_inputs(question: str, vocabulary: list[str], steps: dict[str, Any]) -> dict[str, np.ndarray]:
    """`[CLS] question [SEP] [MASK] [SEP]` (B = 1)."""
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=steps["lower_case"], strip_accents=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words = tokenizer.encode(question, add_special_tokens=False).ids[: steps["sequence_positions"] - RESERVED]
    if not words:
        raise SystemExit("--question: there is no word in it")
    text = [ids["[CLS]"], *words, ids["[SEP]"], ids["[MASK]"], ids["[SEP]"]]
    segments = [0] * (len(words) + 2) + [1] * 2
    return {
        "text_ids": np.array([text], np.int64),
        "segment_ids": np.array([segments], np.int64),
        "text_mask": np.ones((1, len(text)), bool),
    }


def resized(width: int, height: int, short_side: int, longest_side: int) -> tuple[int, int]:
    """Width and height of the resized image: the shorter side is short_side, the longer at most longest_side."""
    short, long = min(width, height), max(width, height)
    size = short_side if long / short * short_side <= longest_side else int(longest_side * short / long)
    if short == size:
        return width, height
    return (size, int(size * height / width)) if width < height else (int(size * width / height), size)


def decoded(text: str, columns: int) -> np.ndarray:
    """float32 [n, columns] of base64."""
    return np.frombuffer(base64.b64decode(text), np.float32).reshape(-1, columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, metavar="MODEL", help=".onnx file, or a folder with model.onnx")
    parser.add_argument("--image", type=Path, required=True, metavar="FILE")
    parser.add_argument("--regions", type=Path, required=True, metavar="FILE.json", help="region file of the image")
    parser.add_argument("--question", required=True)
    parser.add_argument("--top-k", type=int, default=5, metavar="N")
    args = parser.parse_args()
    model = args.model / "model.onnx" if args.model.is_dir() else args.model
    for name, probability in answer(model, args.image, args.regions, args.question, args.top_k):
        print(f"{probability:.6f}\t{name}")


if __name__ == "__main__":
    main()

"""Time of questions about one image, encoded once or for each question: python -m benchmarks.encode_once

VL-BERT base for VQA with random weights on one image of noise, from pixels (ResNet-101, shorter side 600). Both ways
alternate. Prints the medians of --rounds rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.config import load_config
from common.predict.load import build_predictor
from common.predict.predictor import Predictor
from common.weights.loaded import Loaded
from common.weights.restore import build_precision, pick_device
from vqa.predictor import VQAPredictor
from vqa.task import TASK

CFG = "cfgs/vqa/base_4x16G_fp32.yaml"
WORDS = ("what", "is", "the", "color", "of", "this", "thing", "on", "left", "side")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encode_once", description=__doc__.split("\n")[0])
    parser.add_argument("--questions", type=int, default=10, help="about the image (default: 10)")
    parser.add_argument("--boxes", type=int, default=36)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--work", type=Path, default=Path("output/benchmarks"), help="folder of a made-up vocabulary")
    args = parser.parse_args()
    predictor = build(args.work, args.precision)
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8))
    corner = rng.uniform(0, 0.6, (args.boxes, 2)) * (640, 480)
    boxes = np.concatenate([corner, corner + rng.uniform(0.1, 0.4, (args.boxes, 2)) * (640, 480)], axis=1)
    questions = [" ".join(rng.choice(WORDS, 8)) for _ in range(args.questions)]

    seconds: dict[str, list[float]] = {"each question": [], "once": []}
    for _ in range(args.rounds):
        for name, times in seconds.items():
            predictor.images.forget()
            start = time.perf_counter()
            for question in questions:
                if name == "each question":
                    predictor.images.forget()
                predictor(image, question=question, boxes=boxes)
            times.append((time.perf_counter() - start) / len(questions))
    device = "CPU" if predictor.device.type == "cpu" else torch.cuda.get_device_name(predictor.device)
    print(
        f"{device}, {args.precision}, {args.questions} questions, {args.boxes} boxes, medians of {args.rounds} rounds"
    )
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"  encoded {name:<14} {median:8.3f} s a question")
    print(f"  ratio {medians['each question'] / medians['once']:.1f}")


def build(folder: Path, precision: str) -> Predictor:
    """Builds a predictor of VL-BERT base from pixels with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "answers.txt").write_text("\n".join(["<unk>", *(f"answer{i}" for i in range(3128))]) + "\n")
    cfg = load_config(
        "vqa",
        CFG,
        [
            "NETWORK.IMAGE_FEAT_PRECOMPUTED=false",
            f"NETWORK.BERT_MODEL_NAME={folder}/vocab.txt",
            f"DATASET.ANSWER_VOCAB_FILE={folder}/answers.txt",
            f"TRAIN.PRECISION={precision}",
        ],
    )
    torch.manual_seed(0)
    device = pick_device(cfg)
    model = TASK.build_model(cfg).to(device).eval()
    return build_predictor(VQAPredictor, Loaded(model, device, build_precision(TASK, cfg, device), Path("random")), cfg)


if __name__ == "__main__":
    main()

"""Attention maps of a pretrained model, one file for each image (original 6.1).

python pretrain/vis_attention_maps.py --cfg cfgs/pretrain/vis_attention_maps_coco.yaml --save-dir maps
python pretrain/vis_attention_maps.py --cfg ... --save-dir maps --input own.jsonl --boxes detector:WEIGHTS.pth

Writes <save-dir>/attention_probs/<id>.npy, float32 [layers, heads, S, S], where axis 2 attends to axis 3, and
<save-dir>/slots/<id>.json with the S slots, the boxes and the text. Skips existing files.
`python -m viz.attention --map <save-dir>/attention_probs/<id>.npy` makes a page of a map.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.cli import add_config_arguments, find_place, guarded, load_run_config
from common.config import Config

if TYPE_CHECKING:
    from torch import Tensor

    from common.data.sample import Batch, ModelOutput
    from common.weights.loaded import Loaded
    from pretrain.captions import CaptionDataset


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_config_arguments(parser)
    parser.add_argument("--ckpt", metavar="FILE", help="overrides NETWORK.PARTIAL_PRETRAIN")
    parser.add_argument("--save-dir", type=Path, default=Path("attention_maps"), metavar="DIR")
    parser.add_argument(
        "--input", type=Path, metavar="FILE", help='own images: a JSON object a line with "image", "caption", "boxes"'
    )
    parser.add_argument("--boxes", metavar="SOURCE", help="boxes of those without: detector:FILE, regions:STORE, ...")
    parser.add_argument("--dist", action="store_true", help="one of the processes of scripts/launch.py")
    parser.add_argument("--slurm", action="store_true", help="one of the tasks of srun, whose variables say which")
    args = parser.parse_args(argv)
    if args.ckpt:
        args.set.append(f"NETWORK.PARTIAL_PRETRAIN={args.ckpt}")
    return guarded(_main, args)


def _main(args: argparse.Namespace) -> None:
    find_place(args.dist, args.slurm)
    cfg = load_run_config("pretrain", args.cfg, args.set, args.model_dir)
    loaded = load_model(cfg)
    count = (
        write_own(cfg, loaded, args.input, args.boxes, args.save_dir)
        if args.input
        else write_dataset(cfg, loaded, args.save_dir)
    )
    print(f"{args.save_dir}: {count} maps written by this process")


def load_model(cfg: Config) -> Loaded:
    """The model of a config with the initial weights of a training run."""
    from common.train.run import seed_everything
    from common.weights.foreign import load_initial_weights
    from common.weights.loaded import Loaded
    from common.weights.restore import build_precision, join_group, pick_device
    from pretrain.task import TASK

    join_group(cfg)
    seed_everything(cfg.RNG_SEED)
    device = pick_device(cfg)
    model = TASK.build_model(cfg)
    load_initial_weights(model, cfg)
    source = Path(cfg.NETWORK.PARTIAL_PRETRAIN or "initial weights")
    return Loaded(model.to(device).eval(), device, build_precision(TASK, cfg, device), source)


def write_dataset(cfg: Config, loaded: Loaded, folder: Path) -> int:
    """Writes the maps of the val split, of the first of several data sets. Every process does its part.

    Returns the number of maps that this process wrote.
    """
    from common import distributed
    from common.data.loader import BatchLoader
    from common.nn.recording import recorded
    from common.train.evaluator import evaluate
    from pretrain.captions import Subset

    dataset = _captions(cfg)
    todo = _without_map(dataset, folder)
    if not todo:
        return 0
    batch_size = cfg.VAL.BATCH_IMAGES
    loader = BatchLoader(
        Subset(dataset, todo),
        batch_size if isinstance(batch_size, int) else batch_size[0],
        num_workers=min(cfg.NUM_WORKERS_PER_GPU, len(todo)),
        rank=distributed.rank(),
        world=distributed.world_size(),
    )
    written = 0
    with recorded(loaded.model) as passes:

        def write(output: ModelOutput, batch: Batch) -> list[Any]:
            nonlocal written
            attention = passes.pop().attention
            assert attention is not None, "it was recorded"
            written += _save_batch(dataset, batch, attention, folder)
            return []

        evaluate(loaded.model, loader, loaded.device, loaded.precision, to_records=write, title="attention maps")
    return written


def _captions(cfg: Config) -> CaptionDataset:
    """The captions of the val split. Raises ConfigError where the first data set has none."""
    from common.errors import ConfigError
    from pretrain.captions import CaptionDataset
    from pretrain.task import TASK

    datasets = TASK.build_dataset(cfg, "val")
    dataset = datasets if not isinstance(datasets, list) else datasets[0]
    if not isinstance(dataset, CaptionDataset):
        raise ConfigError("DATASET: expected captions with regions, coco_captions or conceptual_captions, first")
    return dataset


def _without_map(dataset: CaptionDataset, folder: Path) -> list[int]:
    """The indices of the captions that still need a map. An image has one map, that of its first caption."""
    first = {dataset.image_id(i): i for i in reversed(range(len(dataset)))}
    return sorted(i for name, i in first.items() if not map_path(folder, name).is_file())


def _save_batch(dataset: CaptionDataset, batch: Batch, attention: Sequence[Tensor], folder: Path) -> int:
    """Writes a map for each sample of a batch, without its padding. attention: [B, heads, S, S] of each layer.

    Returns the number of maps.
    """
    from common.predict.prediction import region_names, sequence_slots

    pieces = {i: piece for piece, i in dataset.settings.tokenizer.vocab.items()}
    boxes = (batch.boxes / batch.im_info[:, None, [2, 3, 2, 3]]).cpu()  # [B, R, 4] in pixels of the original image
    for row, index in enumerate(map(int, batch.ids)):
        tokens = batch.text_ids[row, : int(batch.text_mask[row].sum())].tolist()
        count = int(batch.box_mask[row].sum())
        names = region_names(count, dataset.settings.image_box)
        slots = sequence_slots([pieces[t] for t in tokens], names)
        maps = [layer[row, :, : len(slots), : len(slots)] for layer in attention]
        name, text, image = dataset.image_id(index), dataset.caption(index), dataset.image_path(index)
        size = (batch.im_info[row, :2] / batch.im_info[row, 2:4]).round().int().tolist()
        save_map(folder, name, maps, slots, boxes[row, :count].tolist(), names, text, image, size)
    return len(batch.ids)


def write_own(cfg: Config, loaded: Loaded, inputs: Path, boxes: str | None, folder: Path) -> int:
    """Write maps for the lines of a file, named by "id" or by the image's stem. Returns their number.

    boxes: source of boxes for lines without boxes, as in `load_predictor`.

    Raises DataError with the line that cannot be used.
    """
    from common.errors import DataError
    from common.predict.load import build_predictor
    from common.predict.predictor import INPUT_ERRORS
    from pretrain.predictor import CaptionPredictor

    predictor = build_predictor(CaptionPredictor, loaded, cfg, boxes)
    written = 0
    for where, item in read_lines(inputs):
        try:
            name = str(item.get("id", Path(str(item.get("image"))).stem))
            if map_path(folder, name).is_file():
                continue
            p = predictor(**{k: v for k, v in item.items() if k != "id"}, attention=True)
        except (*INPUT_ERRORS, TypeError) as error:
            raise DataError(f"{where}: {error}") from error
        assert p.attention is not None
        save_map(folder, name, [*p.attention], p.slots, p.boxes, p.names, item["caption"], item["image"], [*p.size])
        written += 1
    return written


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file, line 3", object) of every line that is not empty. Raises DataError for a line that is no JSON object."""
    from common.files.json_files import parse_object
    from common.files.text import read_text

    for number, line in enumerate(read_text(path, "a JSON object a line").split("\n"), start=1):
        where = f"{path}, line {number}"
        if line.strip():
            yield where, parse_object(line, where)


def map_path(folder: Path, name: str) -> Path:
    return folder / "attention_probs" / f"{name}.npy"


def save_map(
    folder: Path,
    name: str,
    attention: Sequence[Any],
    slots: Sequence[Any],
    boxes: Sequence[Sequence[float]],
    names: Sequence[str],
    text: str,
    image: str,
    size: Sequence[int],
) -> None:
    """Write the slots, then the map, so that a map never lacks its slots. attention: [heads, S, S] of each layer."""
    import numpy as np
    import torch

    from common.files.atomic import save_array, write_text

    about = {
        "text": text,
        "image": {"path": str(image), "width": size[0], "height": size[1]},
        "boxes": [[round(x, 2) for x in box] for box in boxes],
        "names": list(names),
        "slots": [vars(slot) for slot in slots],
    }
    write_text(folder / "slots" / f"{name}.json", json.dumps(about))
    save_array(map_path(folder, name), torch.stack(list(attention)).float().cpu().numpy().astype(np.float32))


if __name__ == "__main__":
    sys.exit(main())

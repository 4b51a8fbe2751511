"""Needs: the files and folders that a run reads. Finds out whether they exist and opens none. Imports no torch.

`<task>/needs.py` defines `needs(cfg)`, which returns the needs of the task's data. Those of its weights are the same
for all tasks: `weight_needs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.config import Config
from common.config.derived import LANGUAGE_FILES, numbered_file, vocabulary_path
from common.config.table import from_task

SPLITS = ("TRAIN", "VAL", "TEST")


@dataclass(frozen=True)
class Need:
    """One thing that a run reads.

    folder: the folder that a report names when all of it is missing. names: paths relative to it, any one of which is
    enough. region_store: the thing is a region store, which `common.doctor --deep` opens by the first name.
    """

    folder: Path
    names: tuple[str, ...]
    region_store: bool = False

    @property
    def path(self) -> Path:
        """The path of the first name."""
        return self.folder / self.names[0]

    def exists(self) -> bool:
        """Returns whether one of the names exists."""
        return any((self.folder / name).exists() for name in self.names)

    def __str__(self) -> str:
        return " or ".join(str(self.folder / name) for name in self.names)


def file_need(path: str | Path, root: Path | None = None) -> Need:
    """Returns the need of one path. Its folder is `root` where the path lies in it, else the folder that holds it."""
    path = Path(path)
    folder = root if root is not None and root in path.parents else path.parent
    return Need(folder, (str(path.relative_to(folder)),))


def image_folder_need(root: Path, name: str) -> Need:
    """Returns the need of a folder of images in `root`, or of the zip archive of the same name."""
    return Need(root, (name, f"{name}.zip"))


def region_store_need(path: str | Path, root: Path) -> Need:
    """Returns the need of a region store: a folder, or a packed store or zip archive of that name."""
    store = file_need(path, root)
    [name] = store.names
    return Need(store.folder, (name, f"{name}.packed", f"{name}.zip"), region_store=True)


def names_of(dataset: Config, key: str) -> list[str]:
    """Returns the names in <split>_<key> of a DATASET section, each once; + joins several names."""
    joined = "+".join(dataset[f"{split}_{key}"] for split in SPLITS)
    return list(dict.fromkeys(name.strip() for name in joined.split("+") if name.strip()))


def weight_needs(cfg: Config) -> list[Need]:
    """Returns the needs of the vocabulary and of the weights that a run starts from."""
    network = cfg.NETWORK
    language = Path(network.BERT_MODEL_NAME)
    found = [file_need(vocabulary_path(cfg), language.parent)]
    if network.BERT_PRETRAINED:
        found.append(file_need(numbered_file(network.BERT_PRETRAINED, network.BERT_PRETRAINED_EPOCH)))
    elif not (network.BERT_RANDOM_INIT or network.PARTIAL_PRETRAIN or network.VLBERT.get("from_scratch")):
        found.append(Need(language.parent, tuple(f"{language.name}/{file}" for file in LANGUAGE_FILES)))
    if network.IMAGE_PRETRAINED and not network.IMAGE_FEAT_PRECOMPUTED:
        found.append(file_need(numbered_file(network.IMAGE_PRETRAINED, network.IMAGE_PRETRAINED_EPOCH)))
    if network.PARTIAL_PRETRAIN:
        found.append(file_need(network.PARTIAL_PRETRAIN))
    return found


def run_needs(task: str, cfg: Config) -> list[Need]:
    """Returns everything that a run of `cfg` reads, each need once.

    Raises ConfigError for a task without needs.py, and UserError where the config names data that the task lacks.
    """
    return list(dict.fromkeys([*from_task(task, "needs", "needs")(cfg), *weight_needs(cfg)]))

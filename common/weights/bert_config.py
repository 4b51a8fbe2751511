"""Comparison of a BERT folder's config.json with the YAML: settings that no shape of a tensor shows."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config import Config
from common.files.json_files import read_json
from common.nn.bert import LAYER_NORM_EPS

log = logging.getLogger(__name__)

# Key of config.json -> key of the section NETWORK.VLBERT.
COMPARED = {
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "hidden_act": "hidden_act",
}
SAME_ACTIVATION = {"silu": "swish"}


def bert_mismatches(folder: Path, cfg: Config) -> list[str]:
    """One text for each setting that differs, with both values. Empty without the JSON files.

    folder: with config.json, and the casing there or in tokenizer_config.json. The layer-norm epsilon and lower case
    are fixed in this code. A key that config.json lacks is not compared.
    Raises DataError where a file is no valid JSON.
    """
    given = _settings(folder / "config.json")
    found = []
    for name, key in COMPARED.items():
        own = cfg.NETWORK.VLBERT[key]
        if name in given and SAME_ACTIVATION.get(given[name], given[name]) != own:
            found.append(f"{name} {given[name]} (NETWORK.VLBERT.{key} {own})")
    epsilon = given.get("layer_norm_eps", LAYER_NORM_EPS)
    if epsilon != LAYER_NORM_EPS:
        found.append(f"layer_norm_eps {epsilon} (this code {LAYER_NORM_EPS})")
    lower = {**given, **_settings(folder / "tokenizer_config.json")}.get("do_lower_case", True)
    if lower is not True:
        found.append(f"do_lower_case {lower} (this code True)")
    return found


def warn_of_mismatches(weights: Path, cfg: Config) -> None:
    """Log one warning that names the settings of the language model of file `weights` that the YAML contradicts."""
    found = bert_mismatches(weights.parent, cfg)
    if found:
        log.warning("%s and the configuration differ: %s", weights.parent / "config.json", "; ".join(found))


def _settings(path: Path) -> Mapping[str, Any]:
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}

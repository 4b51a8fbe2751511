"""A BERT folder's config.json beside the YAML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config import load_config
from common.errors import DataError
from common.task import load_task
from common.weights.bert_config import bert_mismatches
from common.weights.foreign import load_initial_weights
from tests.tiny import tiny_vqa, write_settings

# Of the tiny YAML, as transformers writes it.
SAME = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_size": 16,
    "model_type": "bert",
}


@pytest.fixture
def cfg(tiny_world: Path, tmp_path: Path) -> Any:
    settings = tiny_vqa(tiny_world, tmp_path)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/vocab.txt").write_bytes((tiny_world / "bert/vocab.txt").read_bytes())
    settings["NETWORK"]["BERT_MODEL_NAME"] = str(tmp_path / "bert")
    return load_config("vqa", write_settings(settings, tmp_path / "tiny.yaml"))


def write(folder: Path, name: str = "config.json", **settings: Any) -> None:
    (folder / name).write_text(json.dumps(settings))


@pytest.mark.parametrize("given", [{}, SAME, {"num_hidden_layers": 2}, {**SAME, "do_lower_case": True}])
def test_what_agrees_or_is_missing_is_no_mismatch(cfg, tmp_path, given):
    assert bert_mismatches(tmp_path, cfg) == []
    write(tmp_path, **given)
    assert bert_mismatches(tmp_path, cfg) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_attention_heads": 4}, "num_attention_heads 4 (NETWORK.VLBERT.num_attention_heads 2)"),
        ({"num_hidden_layers": 12}, "num_hidden_layers 12 (NETWORK.VLBERT.num_hidden_layers 2)"),
        ({"hidden_act": "silu"}, "hidden_act silu (NETWORK.VLBERT.hidden_act gelu)"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05 (this code 1e-12)"),
        ({"do_lower_case": False}, "do_lower_case False (this code True)"),
    ],
)
def test_a_mismatch_names_key_and_both_values(cfg, tmp_path, changes, text):
    write(tmp_path, **{**SAME, **changes})
    assert bert_mismatches(tmp_path, cfg) == [text]


def test_silu_is_swish(tiny_world, tmp_path):
    settings = tiny_vqa(tiny_world, tmp_path)
    settings["NETWORK"]["VLBERT"]["hidden_act"] = "swish"
    write(tmp_path, **{**SAME, "hidden_act": "silu"})
    assert bert_mismatches(tmp_path, load_config("vqa", write_settings(settings, tmp_path / "a.yaml"))) == []


def test_the_tokenizer_file_has_the_casing_of_newer_folders(cfg, tmp_path):
    write(tmp_path, **SAME)
    write(tmp_path, "tokenizer_config.json", do_lower_case=False)
    assert bert_mismatches(tmp_path, cfg) == ["do_lower_case False (this code True)"]


def test_damaged_json_is_told(cfg, tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config.json: not valid JSON at line 1"):
        bert_mismatches(tmp_path, cfg)


def test_loading_logs_one_warning(cfg, tmp_path, caplog):
    transformers = pytest.importorskip("transformers")
    language = transformers.BertConfig(**SAME, vocab_size=cfg.NETWORK.VLBERT.vocab_size, intermediate_size=32)
    torch.manual_seed(0)
    transformers.BertModel(language).save_pretrained(tmp_path / "bert")
    model = load_task("vqa").build_model(cfg)
    assert load_initial_weights(model, cfg) and not [r for r in caplog.records if r.levelname == "WARNING"]
    write(tmp_path / "bert", **{**SAME, "num_attention_heads": 4, "hidden_act": "relu"})
    load_initial_weights(model, cfg)
    [warning] = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warning == (
        f"{tmp_path}/bert/config.json and the configuration differ: "
        "num_attention_heads 4 (NETWORK.VLBERT.num_attention_heads 2); hidden_act relu (NETWORK.VLBERT.hidden_act gelu)"
    )

"""Original 2.22 to 2.28 and 3.29. The reference for language models is `transformers`."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import Tensor, nn
from transformers import BertConfig, BertForPreTraining, BertModel

from common.errors import CheckpointError, ConfigError
from common.nn.bert import PredictionHeadTransform
from common.nn.fast_rcnn import FastRCNN
from common.nn.vl_bert import (
    NUM_SPECIAL_WORDS,
    VisualLinguisticBert,
    VisualLinguisticBertForPretraining,
    VLBertSizes,
)
from common.weights.foreign import (
    find_language_weights,
    load_backbone,
    load_head_transform,
    load_initial_weights,
    load_language,
    load_partial,
    read_tensors,
    rename_prefixes,
)

HIDDEN, LAYERS, VOCAB, POSITIONS = 16, 2, 40, 24


def sizes(**changes) -> VLBertSizes:
    values = {
        "hidden_size": HIDDEN,
        "visual_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": VOCAB,
        "max_position_embeddings": POSITIONS,
        "with_pooler": True,
    }
    return VLBertSizes(**values | changes)


@pytest.fixture(scope="module")
def hf() -> BertForPreTraining:
    """A small BERT of `transformers` whose tensors are all away from their initial values."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=POSITIONS,
        type_vocab_size=2,
    )
    model = BertForPreTraining(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model


@pytest.fixture(scope="module")
def language(hf) -> dict[str, Tensor]:
    """Its tensors as `pytorch_model.bin` of today has them."""
    return {k: v.clone() for k, v in hf.state_dict().items() if not k.endswith("position_ids")}


def gamma_beta(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of the first published files."""
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {next((k.replace(a, b) for a, b in names.items() if k.endswith(a)), k): v for k, v in state.items()}


def without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("bert."): v for k, v in state.items() if k.startswith("bert.")}


def saved(state, path: Path) -> dict[str, Tensor]:
    torch.save(state, path)
    return read_tensors(path)


def language_files(hf, language, tmp_path: Path) -> dict[str, dict[str, Tensor]]:
    """The same model in every form that files of it come in."""
    hf.save_pretrained(tmp_path / "pretraining")
    hf.bert.save_pretrained(tmp_path / "body")
    assert isinstance(hf.bert, BertModel)
    return {
        "safetensors of BertForPreTraining": read_tensors(tmp_path / "pretraining/model.safetensors"),
        "safetensors of BertModel, no prefix": read_tensors(tmp_path / "body/model.safetensors"),
        "bin": saved(language, tmp_path / "now.bin"),
        "bin with gamma and beta": saved(gamma_beta(language), tmp_path / "old.bin"),
        "bin with gamma and beta, no prefix": saved(gamma_beta(without_prefix(language)), tmp_path / "bare.bin"),
        "under state_dict": saved({"state_dict": language}, tmp_path / "wrapped.bin"),
        "in half precision": {k: v.half() for k, v in language.items()},
        "of RoBERTa's prefix": {k.replace("bert.", "roberta.", 1): v for k, v in language.items()},
    }


TEXT = {
    "text_ids": torch.tensor([[2, 7, 9, 30, 3], [2, 11, 3, 0, 0]]),
    "segment_ids": torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 0, 0]]),
    "text_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool(),
}
NO_REGIONS = {
    "text_visual": torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(1)),  # gain 0 hides it
    "object_visual": torch.zeros(2, 1, HIDDEN),
    "object_linguistic": torch.zeros(2, 1, HIDDEN),
    "object_mask": torch.zeros(2, 1, dtype=torch.bool),
}


class TestAgainstTransformers:
    @torch.no_grad()
    def test_text_without_vision_is_bert(self, hf, language, tmp_path):
        """The END element is masked out of the attention; everything else is BERT's."""
        want = hf.bert(TEXT["text_ids"], TEXT["text_mask"].long(), TEXT["segment_ids"])
        real = TEXT["text_mask"]
        for name, state in language_files(hf, language, tmp_path).items():
            torch.manual_seed(1)
            model = VisualLinguisticBert(sizes()).eval()
            load_language(model, state, name)
            packed = model.embed(**TEXT, **NO_REGIONS)
            last = model.encoder(packed.embeddings, packed.text_mask).layers[-1]
            atol = 1e-5 if "half" not in name else 0.02
            embedded = hf.bert.embeddings(TEXT["text_ids"], TEXT["segment_ids"])
            torch.testing.assert_close(packed.embeddings[:, :5][real], embedded[real], atol=atol, rtol=0)
            torch.testing.assert_close(last[:, :5][real], want.last_hidden_state[real], atol=atol, rtol=0)
            torch.testing.assert_close(model.pooler(last), want.pooler_output, atol=atol, rtol=0)
            assert all(p.dtype == torch.float32 for p in model.parameters())

    @torch.no_grad()
    def test_heads_are_berts(self, hf, language, tmp_path):
        want = hf(TEXT["text_ids"], TEXT["text_mask"].long(), TEXT["segment_ids"])
        for name, state in language_files(hf, language, tmp_path).items():
            if "no prefix" in name or "half" in name:  # a bare body has no heads
                continue
            model = VisualLinguisticBertForPretraining(sizes()).eval()
            report = load_language(model, state, name)
            packed = model.embed(**TEXT, **NO_REGIONS)
            last = model.encoder(packed.embeddings, packed.text_mask).layers[-1]
            words = model.mlm_head(last[:, :5])[TEXT["text_mask"]]
            torch.testing.assert_close(words, want.prediction_logits[TEXT["text_mask"]], atol=1e-4, rtol=0)
            related = model.relationsip_head(model.pooler(last))
            torch.testing.assert_close(related, want.seq_relationship_logits, atol=1e-5, rtol=0)
            assert report.unused == []
            assert model.mlm_head.predictions.decoder.weight is model.word_embeddings.weight

    @torch.no_grad()
    def test_the_encoder_alone(self, hf, language):
        model = VisualLinguisticBert(sizes()).eval()
        load_language(model, language, "bin")
        embedded = hf.bert.embeddings(TEXT["text_ids"], TEXT["segment_ids"])
        every = hf.bert(TEXT["text_ids"], TEXT["text_mask"].long(), TEXT["segment_ids"], output_hidden_states=True)
        got = model.encoder(embedded, TEXT["text_mask"], all_layers=True).layers
        for ours, theirs in zip(got, every.hidden_states[1:], strict=True):
            torch.testing.assert_close(ours[TEXT["text_mask"]], theirs[TEXT["text_mask"]], atol=1e-5, rtol=0)


class TestLanguage:
    def test_report(self, language):
        """Without pooler and heads their keys are unused; what no language file has is kept."""
        report = load_language(VisualLinguisticBert(sizes(with_pooler=False)), language, "here")
        assert report.source == "here"
        assert len(report.loaded) == 5 + 16 * LAYERS  # words, positions, types, norm; 16 tensors a layer
        assert "encoder.layer.1.output.LayerNorm.bias" in report.loaded
        assert report.kept == ["end_embedding.weight"] + [
            f"visual_ln_{x}.{leaf}" for x in ("text", "object") for leaf in ("weight", "bias")
        ]
        assert [k for k in report.unused if not k.startswith("cls.")] == ["pooler.dense.bias", "pooler.dense.weight"]
        assert "here: 37 tensors loaded; " in str(report) and "model keys keep their values" in str(report)

    def test_the_type_of_regions_stays_random(self, language):
        """Original 2.23: a BERT file has two rows, we have three."""
        model = VisualLinguisticBert(sizes())
        before = model.token_type_embeddings.weight[2].clone()
        load_language(model, language, "x")
        types = language["bert.embeddings.token_type_embeddings.weight"]
        assert torch.equal(model.token_type_embeddings.weight[:2], types)
        assert torch.equal(model.token_type_embeddings.weight[2], before)

    def test_a_single_type_row_is_shared(self, language):
        """RoBERTa; original 2.23 keeps the difference between the classes."""
        key = "bert.embeddings.token_type_embeddings.weight"
        one = language | {key: language[key][:1]}
        model, pretraining = VisualLinguisticBert(sizes()), VisualLinguisticBertForPretraining(sizes())
        before = pretraining.token_type_embeddings.weight[2].clone()
        for m in (model, pretraining):
            load_language(m, one, "x")
            assert all(torch.equal(m.token_type_embeddings.weight[i], language[key][0]) for i in (0, 1))
        assert torch.equal(model.token_type_embeddings.weight[2], language[key][0])
        assert torch.equal(pretraining.token_type_embeddings.weight[2], before)

    def test_roberta_names_of_the_head(self, language):
        new = {
            "transform.dense.": "dense.",
            "transform.LayerNorm.": "layer_norm.",
            "decoder.weight": "decoder.weight",
            "bias": "bias",
        }
        state = without_prefix(language)
        for key, value in language.items():
            part = key.removeprefix("cls.predictions.")
            for old, name in new.items():
                if part != key and part.startswith(old):
                    state[f"lm_head.{name}{part.removeprefix(old)}"] = value
        ours = VisualLinguisticBertForPretraining(sizes())
        load_language(ours, state, "roberta")
        head = ours.mlm_head.predictions
        assert torch.equal(head.transform.dense.weight, language["cls.predictions.transform.dense.weight"])
        assert torch.equal(head.transform.LayerNorm.bias, language["cls.predictions.transform.LayerNorm.bias"])
        assert torch.equal(head.bias, language["cls.predictions.bias"])

    def test_frozen_words_refill_the_special_table(self, language):
        """Original 2.12."""
        model = VisualLinguisticBertForPretraining(sizes(word_embedding_frozen=True))
        load_language(model, language, "x")
        words = language["bert.embeddings.word_embeddings.weight"]
        assert torch.equal(model.special_word_embeddings.weight[:VOCAB], words)
        assert model.special_word_embeddings.weight.shape == (NUM_SPECIAL_WORDS, HIDDEN)

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"hidden_size": 32, "visual_size": 32}, "token_type_embeddings"),
            ({"vocab_size": VOCAB + 1}, r"word_embeddings.weight is \(40, 16\), the model has \(41, 16\)"),
            ({"max_position_embeddings": 32}, r"position_embeddings.weight is \(24, 16\)"),
            ({"type_vocab_size": 1}, "token_type_embeddings"),
            ({"intermediate_size": 64}, "intermediate.dense.weight"),
            ({"num_hidden_layers": 3}, "no encoder.layer.2.attention.self.query.weight"),
        ],
    )
    def test_other_sizes_are_named(self, language, changes, text):
        """Original 2.24."""
        with pytest.raises(CheckpointError, match=text):
            load_language(VisualLinguisticBert(sizes(**changes)), language, "x")

    def test_a_refused_file_changes_nothing(self, language):
        model = VisualLinguisticBert(sizes(intermediate_size=64))
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(CheckpointError):
            load_language(model, language, "x")
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    @pytest.mark.parametrize(
        ("missing", "kind"),
        [
            ("bert.encoder.layer.1.output.dense.bias", VisualLinguisticBert),
            ("bert.embeddings.LayerNorm.weight", VisualLinguisticBert),
            ("bert.pooler.dense.bias", VisualLinguisticBert),
            ("cls.seq_relationship.bias", VisualLinguisticBertForPretraining),
            ("cls.predictions.transform.dense.weight", VisualLinguisticBertForPretraining),
        ],
    )
    def test_incomplete_parts_raise(self, language, missing, kind):
        state = {k: v for k, v in language.items() if k != missing}
        with pytest.raises(CheckpointError, match=f"no {missing.removeprefix('bert.')}"):
            load_language(kind(sizes()), state, "x")

    def test_a_body_without_pooler_and_heads_leaves_ours(self, language):
        state = {k: v for k, v in language.items() if "pooler" not in k and not k.startswith("cls.")}
        model = VisualLinguisticBertForPretraining(sizes())
        report = load_language(model, state, "x")
        assert "pooler.dense.weight" in report.kept
        assert "mlm_head.predictions.transform.dense.weight" in report.kept
        assert "mlm_head.predictions.decoder.weight" not in report.kept  # the word table under its second name

    def test_nothing_matches(self):
        with pytest.raises(CheckpointError, match="weights of something: no embeddings.word_embeddings.weight; the"):
            load_language(VisualLinguisticBert(sizes()), {"conv1.weight": torch.zeros(1)}, "weights of something")

    def test_classifier_transform(self, language):
        """Original 2.27, VQA's "mlm" classifier: strict, and None where the file has no head."""
        transform = PredictionHeadTransform(HIDDEN, "gelu")
        load_head_transform(transform, gamma_beta(language), "x")
        assert torch.equal(transform.dense.weight, language["cls.predictions.transform.dense.weight"])
        assert torch.equal(transform.LayerNorm.bias, language["cls.predictions.transform.LayerNorm.bias"])
        assert load_head_transform(transform, without_prefix(language), "x") is None
        part = {k: v for k, v in language.items() if not k.endswith("transform.LayerNorm.bias")}
        with pytest.raises(CheckpointError, match="transform.LayerNorm.bias"):
            load_head_transform(transform, part, "x")


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "executed")


class TestFiles:
    def test_a_missing_file_is_named(self, tmp_path):
        for name in ("a.bin", "a.safetensors"):
            with pytest.raises(FileNotFoundError, match=name):
                read_tensors(tmp_path / name)

    @pytest.mark.parametrize("name", ["a.bin", "a.safetensors"])
    @pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x80\x02}"])
    def test_a_file_of_something_else(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            read_tensors(tmp_path / name)

    @pytest.mark.parametrize("content", [[torch.zeros(1)], {"a": 1}, {"state_dict": {"a": "text"}}, torch.zeros(2)])
    def test_a_torch_file_without_a_dict_of_tensors(self, tmp_path, content):
        torch.save(content, tmp_path / "a.bin")
        with pytest.raises(CheckpointError, match="expected a dict of tensors"):
            read_tensors(tmp_path / "a.bin")

    @pytest.mark.parametrize("new_format", [False, True])
    def test_code_in_a_file_is_not_executed(self, tmp_path, new_format):
        """Original 2.26."""
        trace = tmp_path / "trace"
        content = {"a": torch.zeros(1), "b": Bomb(trace)}
        torch.save(content, tmp_path / "a.bin", _use_new_zipfile_serialization=new_format)
        with pytest.raises(CheckpointError, match="a.bin"):
            read_tensors(tmp_path / "a.bin")
        assert not trace.exists()
        torch.load(tmp_path / "a.bin", weights_only=False)  # the bomb is live
        assert trace.exists()


class TestPrefixes:
    def test_the_first_rule_that_matches_wins(self):
        """Original 3.29, with the rules of cfgs/vcr."""
        rules = [
            "vlbert.mvrc_head.transform->cnn_loss_reg.0",
            "module.vlbert.mvrc_head.transform->module.cnn_loss_reg.0",
            "module.vlbert->module.vlbert._module",
            "vlbert->vlbert._module",
        ]
        keys = ["vlbert.mvrc_head.transform.dense.bias", "vlbert.encoder.x", "image.y", "a.vlbert.z"]
        for wrapper in ("", "module."):
            got = rename_prefixes({wrapper + k: torch.zeros(1) for k in keys}, rules)
            assert list(got) == [
                wrapper + k for k in ("cnn_loss_reg.0.dense.bias", "vlbert._module.encoder.x", "image.y", "a.vlbert.z")
            ]

    def test_a_rule_that_removes_and_one_that_keeps(self):
        assert list(rename_prefixes({"a.b": torch.zeros(1), "c": torch.zeros(1)}, ["a.->", "c->c"])) == ["b", "c"]

    def test_a_rule_without_an_arrow_is_named(self):
        with pytest.raises(ConfigError, match="PARTIAL_PRETRAIN_PREFIX_CHANGES: 'a=b'"):
            rename_prefixes({}, ["a=b"])


class Holder(nn.Module):
    """A task module with a head."""

    def __init__(self, **changes) -> None:
        super().__init__()
        self.vlbert = VisualLinguisticBert(sizes(**changes))
        self.final_mlp = nn.Linear(HIDDEN, 3)

    @property
    def language_model(self) -> VisualLinguisticBert:
        return self.vlbert


class TestPartial:
    @pytest.mark.parametrize("wrapper", ["", "module."])
    def test_lists(self, wrapper):
        torch.manual_seed(0)
        source, model = VisualLinguisticBert(sizes()), Holder()
        state = {f"{wrapper}old.{k}": v.half() for k, v in source.state_dict().items()}
        state |= {f"{wrapper}old.mlm_head.bias": torch.zeros(2), f"{wrapper}final_mlp.bias": torch.full((3,), 7.0)}
        rules = ["old->vlbert", "module.old->module.vlbert"]
        report = load_partial(model, state, rules, "file")
        assert report.unused == ["vlbert.mlm_head.bias"]
        assert report.kept == ["final_mlp.weight"]
        assert len(report.loaded) == len(source.state_dict()) + 1
        assert model.final_mlp.bias.tolist() == [7, 7, 7]
        for k, v in source.state_dict().items():  # half precision arrives as float32
            got = model.state_dict()[f"vlbert.{k}"]
            assert got.dtype == torch.float32 and torch.equal(got, v.half().float())

    def test_adapt_sees_renamed_keys_without_wrapper(self):
        model = Holder()
        state = {f"module.{k}": v for k, v in model.state_dict().items()}

        def adapt(given):
            assert given.keys() == model.state_dict().keys()
            return given | {"final_mlp.bias": torch.full((3,), 2.0)}

        load_partial(model, state, [], "x", adapt)
        assert model.final_mlp.bias.tolist() == [2, 2, 2]

    def test_nothing_useful_matched(self):
        model = Holder()
        with pytest.raises(CheckpointError, match="none of its 2 keys is an encoder layer"):
            load_partial(model, {"final_mlp.bias": torch.zeros(3), "x.encoder.layer.0": torch.zeros(1)}, [], "x")

    def test_other_shapes_are_named(self):
        """Original 3.31."""
        state = Holder().state_dict() | {"final_mlp.bias": torch.zeros(5)}
        with pytest.raises(CheckpointError, match=r"final_mlp.bias is \(5,\), the model has \(3,\)"):
            load_partial(Holder(), state, [], "x")


class TestBackbone:
    @pytest.fixture(scope="class")
    @staticmethod
    def model() -> FastRCNN:
        return FastRCNN(50, final_dim=4)

    @pytest.fixture(scope="class")
    @staticmethod
    def resnet() -> dict[str, Tensor]:
        with torch.device("cpu"):
            return torchvision.models.resnet50(weights=None).state_dict()

    def test_layer4_goes_to_the_roi_head(self, model, resnet, tmp_path):
        path = tmp_path / "r-0000.model"
        torch.save({k: v for k, v in resnet.items() if not k.endswith("num_batches_tracked")}, path)  # as Caffe's
        report = load_backbone(model, path)
        assert report.unused == ["fc.bias", "fc.weight"]
        kept = [k for k in report.kept if not k.endswith("num_batches_tracked")]
        assert kept == ["obj_downsample.1.weight", "obj_downsample.1.bias"]
        assert torch.equal(model.backbone.layer3[5].conv2.weight, resnet["layer3.5.conv2.weight"])
        assert torch.equal(model.head[0][2].bn3.running_var, resnet["layer4.2.bn3.running_var"])

    @pytest.mark.parametrize("missing", ["layer1.0.conv1.weight", "layer4.1.conv2.weight", "bn1.running_mean"])
    def test_missing_tensors_raise(self, model, resnet, tmp_path, missing):
        path = tmp_path / "r.model"
        torch.save({k: v for k, v in resnet.items() if k != missing}, path)
        with pytest.raises(CheckpointError, match=f"no {missing}"):
            load_backbone(model, path)


class TestInitialWeights:
    @staticmethod
    def config(folder: Path, **network) -> SimpleNamespace:
        values = {
            "BERT_PRETRAINED": "",
            "BERT_PRETRAINED_EPOCH": 0,
            "BERT_MODEL_NAME": str(folder),
            "BERT_RANDOM_INIT": False,
            "IMAGE_FEAT_PRECOMPUTED": False,
            "IMAGE_PRETRAINED": "",
            "IMAGE_PRETRAINED_EPOCH": 0,
            "IMAGE_RANDOM_INIT": False,
            "PARTIAL_PRETRAIN": "",
            "PARTIAL_PRETRAIN_PREFIX_CHANGES": (),
            "VLBERT": {
                "from_scratch": False,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": 2,
                "hidden_act": "gelu",
            },
        }
        return SimpleNamespace(NETWORK=SimpleNamespace(**values | network))

    @staticmethod
    def model(extractor: bool = False) -> nn.Module:
        holder = Holder()
        if extractor:
            holder.image_feature_extractor = nn.Identity()
        return holder

    def test_missing_language_weights_raise_unless_allowed(self, tmp_path):
        """Original 2.25: a typo in the path went unnoticed."""
        with pytest.raises(FileNotFoundError, match="BERT_RANDOM_INIT true"):
            load_initial_weights(self.model(), self.config(tmp_path / "typo"))
        assert load_initial_weights(self.model(), self.config(tmp_path, BERT_RANDOM_INIT=True)) == []
        prefix = str(tmp_path / "typo")
        for allowed in (False, True):  # a file that is named must exist in any case
            with pytest.raises(FileNotFoundError, match="typo-0003.model"):
                cfg = self.config(tmp_path, BERT_PRETRAINED=prefix, BERT_PRETRAINED_EPOCH=3, BERT_RANDOM_INIT=allowed)
                load_initial_weights(self.model(), cfg)

    def test_missing_backbone_weights_raise_unless_allowed(self, tmp_path):
        allowed = {"BERT_RANDOM_INIT": True}
        with pytest.raises(FileNotFoundError, match="IMAGE_RANDOM_INIT true"):
            load_initial_weights(self.model(True), self.config(tmp_path, **allowed))
        with pytest.raises(FileNotFoundError, match="r-0002.model"):
            cfg = self.config(tmp_path, **allowed, IMAGE_PRETRAINED=str(tmp_path / "r"), IMAGE_PRETRAINED_EPOCH=2)
            load_initial_weights(self.model(True), cfg)
        assert load_initial_weights(self.model(True), self.config(tmp_path, **allowed, IMAGE_RANDOM_INIT=True)) == []
        assert (
            load_initial_weights(self.model(True), self.config(tmp_path, **allowed, IMAGE_FEAT_PRECOMPUTED=True)) == []
        )

    def test_the_task_names_its_language_model(self, language, tmp_path):
        """Whatever the attribute of the module is."""
        torch.save(language, tmp_path / "pytorch_model.bin")

        class Renamed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = nn.ModuleDict({"bert": VisualLinguisticBert(sizes())})

            @property
            def language_model(self) -> nn.Module:
                return self.inner["bert"]

        model = Renamed()
        (report,) = load_initial_weights(model, self.config(tmp_path))
        query = "bert.encoder.layer.0.attention.self.query.weight"
        assert torch.equal(model.inner["bert"].encoder.layer[0].attention.self.query.weight, language[query])
        assert "word_embeddings.weight" in report.loaded

    def test_a_wrong_language_model(self, language, tmp_path):
        torch.save(language, tmp_path / "pytorch_model.bin")
        model = nn.Module()
        model.language_model = nn.Linear(2, 2)
        with pytest.raises(TypeError, match="Module.language_model is a Linear"):
            load_initial_weights(model, self.config(tmp_path))

    def test_from_scratch_reads_no_language_weights(self, tmp_path):
        cfg = self.config(tmp_path, VLBERT={"from_scratch": True})
        assert load_initial_weights(self.model(), cfg) == []

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
    def test_language_then_partial(self, hf, language, tmp_path, name, caplog):
        """What both files have, the second one decides."""
        folder = tmp_path / "bert"
        if name.endswith("bin"):
            folder.mkdir()
            torch.save(language, folder / name)
        else:
            hf.save_pretrained(folder)
        partial = {k: torch.full_like(v, 3.0) for k, v in Holder().state_dict().items() if "layer.1" in k}
        torch.save({"state_dict": partial}, tmp_path / "vl-bert.model")
        cfg = self.config(folder, PARTIAL_PRETRAIN=str(tmp_path / "vl-bert.model"))
        model = self.model()
        with caplog.at_level(logging.INFO, "common.weights.foreign"):
            reports = load_initial_weights(model, cfg)
        assert [Path(r.source).name for r in reports] == [name, "vl-bert.model"]
        assert len(caplog.messages) == 2
        query = "bert.encoder.layer.0.attention.self.query.weight"
        assert torch.equal(model.vlbert.encoder.layer[0].attention.self.query.weight, language[query])
        assert (model.vlbert.encoder.layer[1].attention.self.query.weight == 3).all()

    def test_a_partial_checkpoint_is_enough(self, tmp_path):
        torch.save({"state_dict": Holder().state_dict()}, tmp_path / "vl-bert.model")
        cfg = self.config(tmp_path / "none", PARTIAL_PRETRAIN=str(tmp_path / "vl-bert.model"))
        assert len(load_initial_weights(self.model(True), cfg)) == 1

    def test_which_file(self, tmp_path):
        cfg = self.config(tmp_path)
        assert find_language_weights(cfg.NETWORK) is None
        for name in ("model.safetensors", "pytorch_model.bin"):  # the second one goes before the first
            (tmp_path / name).touch()
            assert find_language_weights(cfg.NETWORK) == tmp_path / name
        named = self.config(tmp_path, BERT_PRETRAINED="dir/bert", BERT_PRETRAINED_EPOCH=12).NETWORK
        assert find_language_weights(named) == Path("dir/bert-0012.model")

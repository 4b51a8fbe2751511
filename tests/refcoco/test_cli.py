"""The two commands of RefCOCO+ from end to end: files, exit statuses, and the one line of each mistake."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from common.config import load_config
from common.train.run import run_training
from common.weights import checkpoint
from refcoco.files import DETECTIONS_FILE
from refcoco.task import TASK
from tests.cli import process, root_logger_restored
from tests.refcoco.world import tiny_refcoco
from tests.tiny import write_settings

TRAIN, TEST = "refcoco/train_end2end.py", "refcoco/test.py"
PIXELS = ["NETWORK.IMAGE_FEAT_PRECOMPUTED=false", "NETWORK.IMAGE_NUM_LAYERS=50", "NETWORK.IMAGE_RANDOM_INIT=true"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small: Path) -> Path:
    """The folder of a finished run of two epochs. Tests do not change it."""
    folder = tmp_path_factory.mktemp("finished")
    path = write_settings(tiny_refcoco(small, folder / "out"), folder / "tiny.yaml")
    with root_logger_restored():
        return run_training(TASK, load_config("refcoco", path), path)


@pytest.fixture
def trained(finished: Path, tmp_path: Path) -> Path:
    """The same folder, where the run of `cfg_path` puts it. Tests may change it."""
    return Path(shutil.copytree(finished, tmp_path / "out/tiny" / finished.name))


@pytest.fixture
def world(small: Path, tmp_path: Path) -> Path:
    """A copy of the made-up world, which a test may damage."""
    return Path(shutil.copytree(small, tmp_path / "world"))


def results(folder: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((folder / name).read_text())


class TestTraining:
    def test_a_run_with_its_test(self, command, tmp_path, capsys):
        """no. 11: the original's --do-test ended in an error after the training."""
        assert command(TRAIN, "--set", "TRAIN.END_EPOCH=1", "--do-test") == 0
        folder = tmp_path / "out/tiny/train_train"
        assert {"tiny-0000.model", "tiny-best.model", "tiny.yaml", "config.yaml"} <= {p.name for p in folder.iterdir()}
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1] == str(tmp_path / "out/tiny/test_test/tiny_refcoco+_test.json")
        assert lines[0].startswith("refcoco+ test, candidates gt")
        kinds = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert 0 <= next(k for k in kinds if k["kind"] == "val")["Val-RefAcc"] <= 1


class TestTesting:
    @pytest.mark.parametrize(
        ("args", "split"), [((), "val"), (("--split", "testA"), "testA"), (("--split", "test"), "test")]
    )
    def test_splits(self, command, trained, small, tmp_path, capsys, args, split):
        """no. 12 and 13: the default split is val, the default checkpoint the best one of the run."""
        assert command(TEST, *args) == 0
        folder = tmp_path / f"out/tiny/{split}_test"
        out = capsys.readouterr().out.splitlines()
        assert out[-1] == str(folder / f"tiny_refcoco+_{split}.json")
        references = json.loads((small / "refcoco+/refs(unc).json").read_text())
        mine = [r for r in references if split in r["split"]]
        got = results(folder, f"tiny_refcoco+_{split}.json")
        assert [(r["ref_id"], r["sent_id"]) for r in got] == [
            (r["ref_id"], s["sent_id"]) for r in mine for s in r["sentences"]
        ]
        assert [sorted(r) for r in got] == [["box", "ref_id", "sent_id"]] * len(got)
        assert [line.split()[-1] for line in out[1:4]] == [str(len(got))] * 3
        assert out[3].split()[-4] == "100.00"  # the annotations are the candidates
        assert (folder / "tiny_test_ckpt_Q2AR.model").is_file()

    def test_a_place_of_one_s_own_and_another_batch_size(self, command, trained, tmp_path, capsys):
        best = trained / "tiny-best.model"
        for size in (8, 3):
            place = ("--result-path", tmp_path / f"bs{size}", "--result-name", "mine")
            assert command(TEST, "--ckpt", best, "--bs", size, *place) == 0
        many, few = (results(tmp_path / f"bs{size}", "mine_refcoco+_val.json") for size in (8, 3))
        assert [r["sent_id"] for r in many] == [r["sent_id"] for r in few]
        assert [pytest.approx(r["box"], abs=1e-3) for r in many] == [r["box"] for r in few]

    def test_two_processes_write_what_one_writes(self, command, trained, cfg_path, tmp_path, capsys):
        """--gpus 0 1, here on the CPU: the processes share the samples, and write one file and one summary."""
        assert command(TEST, "--split", "test", "--result-path", tmp_path / "one") == 0
        alone = capsys.readouterr().out
        two = ("--gpus", 0, 1, "--result-path", tmp_path / "two")
        status, out, err = process(TEST, "--cfg", cfg_path, "--split", "test", *two)
        assert status == 0, err
        assert out == alone.replace(str(tmp_path / "one"), str(tmp_path / "two"))
        one, two = (results(tmp_path / folder, "tiny_refcoco+_test.json") for folder in ("one", "two"))
        assert [(r["sent_id"], pytest.approx(r["box"], abs=1e-3)) for r in one] == [
            (r["sent_id"], r["box"]) for r in two
        ]
        assert len(one) > 8  # more than one batch, so that both processes had work


class TestMistakes:
    """Each ends with exit status 1 and one error line that names the cause."""

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("DATASET.DATASET_PATH=/no", "/no/refcoco+/refs(unc).p (or .json): no such file"),
            (
                "DATASET.SPLIT_BY=umd",
                "refs(umd).p (or .json): no such file; the folder has refs(unc).json, refs(unc).p",
            ),
            ("DATASET.DATASET=refcocog", "refcocog/refs(unc).p (or .json): no such file; the folder has no other"),
            ("DATASET.TRAIN_IMAGE_SET=testC", "no reference in split 'testC'"),
            ("DATASET.TRAIN_IMAGE_SET=minival", "split 'minival': expected one of train"),
            ("DATASET.TRAIN_BOXES=proposal+gt", "DATASET.TRAIN_BOXES: box mode 'proposal+gt' with PROPOSAL_SOURCE"),
            ("DATASET.REGION_PATH=/no", "no region files; looked for /no.packed, /no"),
            ("NETWORK.BERT_MODEL_NAME=/no", "BERT vocabulary /no not found"),
            ("NETWORK.PARTIAL_PRETRAIN=/no", "checkpoint /no: no such file"),
            ("MODULE=Other", "MODULE = 'Other': expected one of"),
        ],
    )
    def test_wrong_values_in_training(self, error, override, message):
        assert message in error(TRAIN, "--set", override)

    def test_a_missing_image_that_a_worker_meets(self, error, world):
        shutil.rmtree(world / "train2014")
        text = error(TRAIN, "--set", f"DATASET.DATASET_PATH={world}", *PIXELS)
        assert re.search(r"No such file .*train2014/COCO_train2014_0000000000\d\d\.jpg", text)

    def test_a_pickle_with_code(self, error, world, tmp_path):
        class Bomb:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.system, (f"touch {tmp_path}/trace",)

        (world / "refcoco+/refs(unc).p").write_bytes(pickle.dumps([Bomb()], protocol=2))
        text = error(TRAIN, "--set", f"DATASET.DATASET_PATH={world}")
        assert "refs(unc).p: cannot be read as plain data: it asks for posix.system" in text
        assert not (tmp_path / "trace").exists()

    def test_a_reference_to_nothing(self, error, world):
        (world / "refcoco+/refs(unc).p").unlink()
        path = world / "refcoco+/refs(unc).json"
        references = json.loads(path.read_text())
        references[3]["ann_id"] = 31337
        path.write_text(json.dumps(references))
        text = error(TRAIN, "--set", f"DATASET.DATASET_PATH={world}")
        assert re.search(
            r"refs\(unc\)\.json: refs\[3\]: ref_id 53 has ann_id 31337, which .*instances\.json lacks", text
        )

    def test_broken_instances(self, error, world):
        (world / "annotations/instances_train2014.json").write_text('{"images": [\n{]}')
        text = error(TRAIN, "--set", f"DATASET.DATASET_PATH={world}")
        assert "instances_train2014.json: not valid JSON at line 2" in text

    def test_the_wrong_proposals(self, error, world):
        (world / "refcoco+" / DETECTIONS_FILE).write_text('[{"image_id": 4711, "box": [1, 2, 3, 4]}]')
        text = error(TRAIN, "--set", f"DATASET.DATASET_PATH={world}", "DATASET.TRAIN_BOXES=proposal+gt", *PIXELS)
        assert re.search(r"dets\.json: 1 detections, none of them of the \d images of this split", text)

    def test_regions_of_other_boxes(self, error, trained, world):
        """The features of such regions describe other places than the annotations."""
        path = world / "refcoco+/instances.json"
        for file in (path, world / "annotations/instances_train2014.json"):
            content = json.loads(file.read_text())
            for annotation in content["annotations"]:
                annotation["bbox"][0] += 5
            file.write_text(json.dumps(content))
        text = error(TEST, "--set", f"DATASET.DATASET_PATH={world}", "NUM_WORKERS_PER_GPU=0")
        assert re.search(
            r"regions\.packed: image \d: box \d is \[.*\], annotation \d is \[.*\]; expected the annot", text
        )

    def test_testing_before_training(self, error, tmp_path):
        assert error(TEST) == f"checkpoint {tmp_path}/out/tiny/train_train/tiny-best.model: no such file"

    def test_a_checkpoint_of_another_config(self, error, trained):
        best = checkpoint.best_path(trained, "tiny")
        text = error(TEST, "--ckpt", best, "--set", "NETWORK.VLBERT.num_hidden_layers=1")
        assert f"{best} does not fit the configured model" in text and "unknown vlbert.encoder.layer.1." in text
        text = error(TEST, "--ckpt", best, "--set", "NETWORK.IMAGE_FEAT_PRECOMPUTED=false")
        assert "does not fit the configured model" in text and "image_feature_extractor.backbone" in text

    def test_a_split_that_does_not_exist(self, command, capsys):
        assert command(TEST, "--split", "minival") == 2
        assert "argument --split: invalid choice: 'minival'" in capsys.readouterr().err

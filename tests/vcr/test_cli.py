"""The four commands of VCR from end to end: files, exit statuses, and the one line of each mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from common.config import load_config
from tests.cli import files, process, without_torch
from tests.tiny import write_settings
from tests.vcr.world import read_annotations, tiny_vcr, write_annotations
from vcr.result_table import read_table
from vcr.task import TASK
from vcr.text import Q2A, QA2R

TRAIN, TEST, VAL, CHECK = "vcr/train_end2end.py", "vcr/test.py", "vcr/val.py", "vcr/check_submission.py"


@pytest.fixture(autouse=True)
def _empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Results without a path go into the folder of the command."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def weights(shared_world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of both halves, a and r. They are not trained, which these tests do not need."""
    folder, paths = tmp_path_factory.mktemp("weights"), {}
    for letter, half in (("a", Q2A), ("r", QA2R)):
        path = write_settings(tiny_vcr(shared_world, folder, half), folder / "tiny.yaml")
        torch.manual_seed(ord(letter))
        paths[letter] = folder / f"{letter}.model"
        model = TASK.build_model(load_config("vcr", path))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)  # so that the choices score differently
        torch.save({"state_dict": model.state_dict()}, paths[letter])
    return paths


@pytest.fixture
def data(shared_world: Path) -> Path:
    """DATASET_PATH of `nets`. Tests that damage the data override it."""
    return shared_world


@pytest.fixture
def nets(data: Path, tmp_path: Path, weights: dict[str, Path]) -> dict[str, list[object]]:
    """The flags of each half."""
    flags = {}
    for letter, half in (("a", Q2A), ("r", QA2R)):
        settings = tiny_vcr(data, tmp_path / "out", half) | {"NUM_WORKERS_PER_GPU": 0}
        path = write_settings(settings, tmp_path / f"{letter}.yaml")
        flags[letter] = [f"--{letter}-cfg", path, f"--{letter}-ckpt", weights[letter]]
    return flags


@pytest.fixture
def both(nets: dict[str, list[object]]) -> list[object]:
    return nets["a"] + nets["r"]


class TestTest:
    def test_both_halves_and_their_table(self, command, both, tmp_path, capsys, shared_world):
        assert command(TEST, *both, "--result-path", "res", "--result-name", "mine") == 0
        names = [f"mine_test_result_{kind}.csv" for kind in ("Q2A", "QA2R", "Q2AR")]
        assert capsys.readouterr().out.splitlines() == [f"res/{name}" for name in names]
        arrays = {f"mine_test_result_{kind}.npy" for kind in ("Q2A", "QA2R")}
        checkpoints = {"tiny_a_test_ckpt_Q2A.model", "tiny_r_test_ckpt_QA2R.model"}
        assert files(tmp_path / "res") == {*names} | arrays | checkpoints
        answers, rationales, merged = (read_table(tmp_path / "res" / name) for name in names)
        wanted = [row["annot_id"] for row in read_annotations(shared_world / "test.jsonl")]
        assert [row.annot_id for row in merged.rows] == wanted
        for a, r, m in zip(answers.rows, rationales.rows, merged.rows, strict=True):
            assert m.values == a.values + r.values
        for name in names:
            assert command(CHECK, f"res/{name}", "--annot", shared_world / "test.jsonl") == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 3 and lines[2].startswith("res/mine_test_result_Q2AR.csv: Q2AR, 5 annotations")

    def test_the_default_name_is_the_model_s(self, command, both, tmp_path, capsys):
        """The merged file has a name of the same form."""
        assert command(TEST, *both, "--a-bs", 2, "--r-bs", 3) == 0
        assert capsys.readouterr().out.splitlines() == [
            "test_result/tiny_a_test_result_Q2A.csv",
            "test_result/tiny_r_test_result_QA2R.csv",
            "test_result/tiny_a_test_result_Q2AR.csv",
        ]

    def test_one_half_and_another_test_file(self, command, nets, shared_world, tmp_path, capsys):
        """Results have the order of the file, not of a shuffle (original 8.21). A QA2R row is that of its answer
        alone."""
        assert command(TEST, *nets["r"], "--test-file", "val.jsonl", "--set", "TEST.SHUFFLE=true") == 0
        table = read_table(tmp_path / capsys.readouterr().out.strip())
        rows = read_annotations(shared_world / "val.jsonl")
        assert [row.annot_id for row in table.rows] == [row["annot_id"] for row in rows]
        assert command(VAL, *nets["r"]) == 0
        logits = np.load(tmp_path / "vcr_val_results/vl-bert_r_pred.npy")
        for row, values, four in zip(rows, table.rows, logits, strict=True):
            start = 4 * row["answer_label"]
            got = np.array(values.values[start : start + 4], dtype=np.float64)
            want = np.exp(four) / np.exp(four).sum()
            assert got == pytest.approx(want, abs=1e-5)

    def test_a_cache(self, command, nets, both, tmp_path, capsys):
        place = ("--result-path", "res", "--result-name", "mine")
        assert command(TEST, *nets["a"], *place, "--use-cache") == 0  # a miss
        kept = tmp_path / "res/mine_test_result_Q2A.csv"
        text = kept.read_text().replace("0.", "0.000")
        kept.write_text(text)
        assert command(TEST, *both, *place, "--use-cache") == 0
        assert kept.read_text() == text
        merged = (tmp_path / "res/mine_test_result_Q2AR.csv").read_text()
        assert merged.splitlines()[1].startswith(text.splitlines()[1])
        assert command(TEST, *nets["a"], *place) == 0
        assert kept.read_text() != text

    def test_a_cache_of_other_annotations(self, command, error, nets, both):
        place = ("--result-path", "res", "--result-name", "mine")
        assert command(TEST, *nets["a"], *place, "--test-file", "val.jsonl") == 0
        assert "not of the same annotations: 6 annotations are missing: val-0" in error(
            TEST, *both, *place, "--use-cache"
        )

    def test_half_precision(self, command, nets, tmp_path):
        numbers = []
        for flags in ([], ["--fp16"]):
            assert command(TEST, *nets["a"], *flags) == 0
            numbers.append(np.load(tmp_path / "test_result/tiny_a_test_result_Q2A.npy"))
        assert not np.array_equal(*numbers) and np.allclose(*numbers, atol=0.02)


class TestVal:
    def test_both_halves(self, command, both, tmp_path, capsys, shared_world):
        """The printed numbers are those of the files that it writes, computed here by hand."""
        assert command(VAL, *both, "--result-path", "res", "--result-name", "x") == 0
        rows = read_annotations(shared_world / "val.jsonl")
        hits = []
        for letter, key in (("a", "answer_label"), ("r", "rationale_label")):
            scores = np.load(tmp_path / f"res/x_{letter}_pred.npy")
            assert scores.dtype == np.float64 and scores.shape == (len(rows), 4)
            assert json.loads((tmp_path / f"res/x_{letter}_pred.json").read_text()) == [r["annot_id"] for r in rows]
            hits.append(scores.argmax(1) == [row[key] for row in rows])
        want = [100 * hit.mean() for hit in (*hits, hits[0] & hits[1])]
        names = ("Q->A", "QA->R", "Q->AR")
        assert capsys.readouterr().out == "".join(f"{n}\t{w:.1f}\n" for n, w in zip(names, want, strict=True))

    def test_one_half_with_another_batch_size(self, command, nets, tmp_path, capsys):
        outs = []
        for size in (1, 4):
            assert command(VAL, *nets["r"], "--r-bs", size, "--a-bs", 7) == 0
            outs.append(capsys.readouterr().out)
        assert outs[0] == outs[1] and outs[0].startswith("QA->R\t") and outs[0].count("\n") == 1
        assert files(tmp_path / "vcr_val_results") == {"vl-bert_r_pred.npy", "vl-bert_r_pred.json"}

    def test_a_cache_is_read_and_a_miss_is_computed(self, command, both, nets, tmp_path, capsys, shared_world):
        """Original 8.20."""
        assert command(VAL, *nets["a"], "--use-cache") == 0
        path = tmp_path / "vcr_val_results/vl-bert_a_pred.npy"
        labels = [row["answer_label"] for row in read_annotations(shared_world / "val.jsonl")]
        np.save(path, np.eye(4)[labels])
        capsys.readouterr()
        assert command(VAL, *both, "--use-cache") == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "Q->A\t100.0" and lines[1].split("\t")[1] == lines[2].split("\t")[1]
        assert command(VAL, "--use-cache", "--annot", shared_world / "val.jsonl") == 0  # without any config
        assert capsys.readouterr().out.splitlines() == lines
        assert command(VAL, *nets["a"]) == 0
        assert not np.array_equal(np.load(path), np.eye(4)[labels])

    def test_labels_of_another_file_are_joined_by_id(self, command, nets, error, shared_world, tmp_path, capsys):
        rows = read_annotations(shared_world / "val.jsonl")
        write_annotations(tmp_path / "backwards.jsonl", rows[::-1])
        outs = []
        for flags in ([], ["--annot", tmp_path / "backwards.jsonl"]):
            assert command(VAL, *nets["a"], *flags) == 0
            outs.append(capsys.readouterr().out)
        assert outs[0] == outs[1]
        write_annotations(tmp_path / "fewer.jsonl", rows[1:])
        text = error(VAL, *nets["a"], "--annot", tmp_path / "fewer.jsonl")
        assert text.startswith("6 predictions for 5 annotated questions") and text.endswith(": val-0")


class TestTrain:
    def test_training_and_the_results_after_it(self, command, cfg_path, tmp_path, capsys):
        assert command(TRAIN, "--cfg", cfg_path, "--set", "TRAIN.END_EPOCH=1", "--do-test") == 0
        assert {"tiny_a-0000.model", "tiny_a-best.model"} <= files(tmp_path / "out/tiny/vcr1images_train")
        result = tmp_path / "out/tiny/vcr1images_test/tiny_a_test_result_Q2A.csv"
        assert capsys.readouterr().out == f"{result}\n" and read_table(result).kind == "Q2A"


class TestProcesses:
    @pytest.mark.parametrize("script", [TEST, pytest.param(VAL, marks=pytest.mark.slow)])
    def test_two_processes_write_the_files_of_one(self, command, script, both, tmp_path, capsys):
        """The files are equal to the last digit: a process takes whole batches, so that padding is the same."""
        both = [*both, "--a-bs", 2, "--r-bs", 2]
        assert command(script, *both, "--result-path", tmp_path / "one") == 0
        printed = capsys.readouterr().out
        status, out, err = process(script, *both, "--gpus", 0, 1, "--result-path", tmp_path / "two")
        assert status == 0, err
        assert out == printed.replace("/one/", "/two/")  # by one process
        assert files(tmp_path / "one") == files(tmp_path / "two")
        for path in (tmp_path / "one").iterdir():
            assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name

    @pytest.mark.parametrize("script", [TEST, VAL, CHECK])
    def test_help_and_a_wrong_flag_need_no_torch(self, script):
        status, out, err = process("-c", without_torch(script), "--help")
        assert (status, err) == (0, "") and ("--a-cfg FILE" in out or "--annot FILE" in out)
        status, _, err = process("-c", without_torch(script), "--no-such-flag")
        assert status == 2 and "Traceback" not in err


class TestCheckSubmission:
    @pytest.fixture
    def result(self, command, nets, tmp_path, capsys) -> Path:
        assert command(TEST, *nets["a"]) == 0
        return tmp_path / capsys.readouterr().out.strip()

    def test_problems_are_listed(self, command, error, result, shared_world, capsys):
        lines = result.read_text().splitlines()
        lines[2] = lines[1]
        lines[3] = ",".join([*lines[3].split(",")[:4], "oops"])
        result.write_text("\n".join(lines))
        assert command(CHECK, result, "--annot", shared_world / "test.jsonl") == 1
        out, err = capsys.readouterr()
        assert out.splitlines() == [
            f"{result}: 1 annotations are missing: test-1",
            f"{result}: 1 annotations are there more than once: test-0 (lines 2, 3)",
            f"{result}: line 4, column answer_3: 'oops', expected a probability from 0 to 1",
        ]
        assert f"{result}: 3 problems with {shared_world}/test.jsonl" in err

    def test_of_very_many_the_first_are_shown(self, command, result, shared_world, capsys):
        head, *rows = result.read_text().splitlines()
        result.write_text("\n".join([head, *(row.split(",")[0] + ",x" * 4 for row in rows)]) + "\n" + rows[0])
        write_annotations(shared_world.parent / "more.jsonl", [])
        assert command(CHECK, result, "--annot", shared_world / "test.jsonl") == 1
        out = capsys.readouterr().out.splitlines()
        assert len(out) == 21 and out[-1] == f"{result}: and 1 more"

    def test_other_files(self, error, result, shared_world, tmp_path):
        annotations = ("--annot", shared_world / "test.jsonl")
        assert error(CHECK, tmp_path / "no.csv", *annotations) == f"result file {tmp_path}/no.csv: no such file"
        assert "columns of no VCR table" in error(CHECK, shared_world / "test.jsonl", *annotations)
        assert "result.jsonl: no such file" in error(CHECK, result, "--annot", tmp_path / "result.jsonl")


class TestMistakes:
    """Each ends with exit status 1 and one error line that names the cause."""

    @pytest.fixture
    def data(self, world: Path) -> Path:
        return world

    def test_a_config_of_the_other_half(self, error, nets):
        path = nets["r"][1]
        text = f"--a-cfg {path}: DATASET.TASK is QA2R, expected Q2A"
        assert error(VAL, "--a-cfg", path) == text
        assert error(TEST, "--a-cfg", path) == text

    def test_a_checkpoint_without_a_config(self, error, nets):
        assert error(TEST, *nets["a"], "--r-ckpt", "x.model") == "--r-ckpt x.model without --r-cfg"

    @pytest.mark.parametrize("script", [TEST, VAL])
    def test_nothing_to_do(self, command, script, capsys):
        assert command(script) == 2
        assert "give --a-cfg, --r-cfg or both" in capsys.readouterr().err

    @pytest.mark.parametrize("script", [TEST, VAL])
    def test_the_wrong_checkpoint(self, error, nets, script, tmp_path):
        small = ["--set", "NETWORK.VLBERT.num_hidden_layers=1"]
        assert "a.model does not fit the configured model" in error(script, *nets["a"], *small)
        assert error(script, *nets["a"][:2]) == (
            f"checkpoint {tmp_path}/out/a/vcr1images_train/tiny_a-best.model: no such file"
        )

    def test_both_orders_of_the_text_at_once(self, error, nets):
        switches = ["--set", "NETWORK.ANSWER_FIRST=true", "NETWORK.QA_ONE_SENT=true"]
        assert "ANSWER_FIRST and NETWORK.QA_ONE_SENT" in error(TEST, *nets["a"], *switches)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_missing_image(self, error, cfg_path, world, workers):
        """The error is the same where it is raised in a worker process, whose message is a traceback."""
        for path in (world / "vcr1images").rglob("*.jpg"):
            path.unlink()
        pixels = ["NETWORK.IMAGE_FEAT_PRECOMPUTED=false", "NETWORK.IMAGE_RANDOM_INIT=true", "NETWORK.IMAGE_PRETRAINED="]
        flags = [f"DATASET.DATASET_PATH={world}", *pixels, f"NUM_WORKERS_PER_GPU={workers}"]
        text = error(TRAIN, "--cfg", cfg_path, "--set", *flags)
        assert re.search(r"No such file .*vcr1images/movie_\w+/\w+@0\.jpg", text)

    def test_a_malformed_line(self, error, nets, world):
        (world / "val.jsonl").write_text((world / "val.jsonl").read_text() + '{"annot_id": "val-')
        assert re.search(r"val\.jsonl, line 7: not valid JSON: ", error(VAL, *nets["a"]))

    def test_a_label_out_of_range(self, error, cfg_path, world):
        rows = read_annotations(world / "train.jsonl")
        rows[2]["rationale_label"] = 4
        write_annotations(world / "train.jsonl", rows)
        text = error(TRAIN, "--cfg", cfg_path, "--set", f"DATASET.DATASET_PATH={world}")
        assert text == f"{world}/train.jsonl, line 3: rationale_label is 4, expected a number from 0 to 3"

    def test_boxes_and_objects_of_differing_length(self, error, nets, world):
        path = world / "vcr1images/movie_tall/tall@0.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"boxes": content["boxes"][:1]}))
        assert f"{path}: 1 boxes and 2 segms, but" in error(TEST, *nets["a"])

    def test_an_empty_split(self, error, nets, world):
        (world / "test.jsonl").write_text("")
        assert error(TEST, *nets["a"]) == f"{world}/test.jsonl: no annotations"
        assert "none.jsonl: no such file" in error(TEST, *nets["a"], "--test-file", "none.jsonl")

    def test_features_of_other_boxes(self, error, nets, world):
        path = world / "vcr1images/movie_wide/wide@0.json"
        content = json.loads(path.read_text())
        content["boxes"][1][0] += 9
        path.write_text(json.dumps(content))
        assert "regions of 'wide@0': a box is 9.0 pixels off the metadata" in error(TEST, *nets["a"])

    def test_settings_that_cannot_work(self, error, cfg_path):
        for override, message in (
            ("DATASET.TASK=Q2AR", "DATASET.TASK = 'Q2AR': expected one of 'Q2A', 'QA2R'"),
            ("NETWORK.CNN_LOSS_TOP=false", "NETWORK.CNN_LOSS_TOP false trains the CNN"),
            ("DATASET.REGION_PATH=''", "DATASET.REGION_PATH = '': expected the region store"),
            ("DATASET.VAL_ANNOTATION_FILE=''", "DATASET.VAL_ANNOTATION_FILE is empty"),
        ):
            assert message in error(TRAIN, "--cfg", cfg_path, "--set", override)

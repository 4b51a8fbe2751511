"""The three commands of VQA from end to end: files, exit statuses, and the one line of each mistake."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.config import load_config
from common.train.run import run_training
from common.weights import checkpoint
from tests.cli import files, process, root_logger_restored, start, without_torch
from tests.tiny import tiny_vqa, write_settings
from vqa.task import TASK

TRAIN, TEST, VAL = "vqa/train_end2end.py", "vqa/test.py", "vqa/val.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_world: Path) -> Path:
    """The folder of a finished run of two epochs. Tests do not change it."""
    folder = tmp_path_factory.mktemp("finished")
    path = write_settings(tiny_vqa(tiny_world, folder / "out"), folder / "tiny.yaml")
    with root_logger_restored():
        return run_training(TASK, load_config("vqa", path), path)


@pytest.fixture
def trained(finished: Path, tmp_path: Path) -> Path:
    """The same folder, where the run of `cfg_path` puts it. Tests may change it."""
    return Path(shutil.copytree(finished, tmp_path / "out/tiny" / finished.name))


@pytest.fixture
def world(tiny_world: Path, tmp_path: Path) -> Path:
    """A copy of the made-up world, which a test may damage."""
    return Path(shutil.copytree(tiny_world, tmp_path / "world"))


class TestProcesses:
    def test_a_script_trains_and_tests(self, cfg_path, tmp_path):
        status, out, err = process(TRAIN, "--cfg", cfg_path, "--set", "TRAIN.END_EPOCH=1", "--do-test")
        assert status == 0, err
        folder = tmp_path / "out/tiny/train2014_train"
        assert {"tiny-0000.model", "tiny-best.model", "tiny.yaml", "config.yaml", "tiny.log"} <= files(folder)
        assert "tiny-0001.model" not in files(folder)
        result = tmp_path / "out/tiny/test2015_test/tiny_vqa2_test2015.json"
        assert out == f"{result}\n" and json.loads(result.read_text())

    def test_two_processes_write_the_file_of_one(self, command, trained, cfg_path, tmp_path):
        assert command(TEST, "--result-path", tmp_path / "one") == 0
        status, out, err = process(TEST, "--cfg", cfg_path, "--gpus", 0, 1, "--result-path", tmp_path / "two")
        assert status == 0, err
        assert out == f"{tmp_path}/two/tiny_vqa2_test2015.json\n"  # of one process alone
        name = "tiny_vqa2_test2015.json"
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()

    @pytest.mark.slow
    def test_two_processes_score_as_one(self, command, trained, cfg_path, capsys):
        assert command(VAL) == 0
        assert process(VAL, "--cfg", cfg_path, "--gpus", 0, 1)[:2] == (0, capsys.readouterr().out)

    def test_a_mistake_in_two_processes(self, cfg_path, tmp_path):
        status, _, err = process(TEST, "--cfg", cfg_path, "--gpus", 0, 1, "--ckpt", tmp_path / "none.model")
        assert status == 1 and "none.model: no such file" in err and "Traceback" not in err

    def test_sigterm_keeps_the_position_and_the_same_command_goes_on(self, command, cfg_path, tmp_path, tiny_world):
        folder, epochs = tmp_path / "out/tiny/train2014_train", 12
        run = start("-m", "vqa.train_end2end", "--cfg", cfg_path, "--set", f"TRAIN.END_EPOCH={epochs}")
        wait_for(lambda: (folder / "tiny-0000.model").exists(), run)
        os.killpg(run.pid, signal.SIGTERM)  # its workers get it too
        _, err = run.communicate(timeout=60)
        assert run.returncode == 128 + signal.SIGTERM == 143
        assert "Traceback" not in err and "stopped by SIGTERM" in err.splitlines()[-1]
        assert "tiny-latest.model" in files(folder) and f"tiny-{epochs - 1:04d}.model" not in files(folder)

        assert command(TRAIN, "--set", f"TRAIN.END_EPOCH={epochs}") == 0
        assert f"tiny-{epochs - 1:04d}.model" in files(folder) and "tiny-latest.model" not in files(folder)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steps = [line["step"] for line in lines if line["kind"] == "train"]
        questions = json.loads((tiny_world / "vqa/v2_OpenEnded_mscoco_train2014_questions.json").read_text())[
            "questions"
        ]
        batches = -(-len(questions) // 8)
        assert steps == list(range(1, epochs * batches + 1))  # nothing twice, nothing left out

    def test_a_mistake_ends_in_one_line(self, cfg_path):
        status, out, err = process(TRAIN, "--cfg", cfg_path, "--set", "TRAIN.LRR=1")
        assert (status, out) == (1, "")
        assert re.fullmatch(r"\S+ E common\.cli: overrides: TRAIN\.LRR: unknown key in vqa; did you mean .*\n", err)

    @pytest.mark.parametrize("script", [TRAIN, TEST, VAL])
    def test_help_and_a_wrong_flag_need_no_torch(self, script):
        status, out, err = process("-c", without_torch(script), "--help")
        assert (status, err) == (0, "") and "--cfg FILE" in out and "--set KEY=VALUE" in out
        status, _, err = process("-c", without_torch(script), "--cfg", "x.yaml", "--no-such-flag")
        assert status == 2 and "--no-such-flag" in err and "Traceback" not in err


def wait_for(condition: Callable[[], bool], run: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert run.poll() is None and time.monotonic() < until, run.communicate()[1]
        time.sleep(0.01)


class TestTest:
    def test_the_best_checkpoint_of_the_run_by_default(self, command, trained, tmp_path, capsys):
        shutil.copy(trained / "tiny-best.model", tmp_path / "kept.model")
        for path in trained.glob("*.model"):
            path.unlink()
        shutil.copy(tmp_path / "kept.model", trained / "tiny-best.model")
        assert command(TEST) == 0
        result = tmp_path / "out/tiny/test2015_test/tiny_vqa2_test2015.json"
        assert capsys.readouterr().out == f"{result}\n"
        assert sorted(json.loads(result.read_text())[0]) == ["answer", "question_id"]

    def test_a_checkpoint_and_a_place_of_one_s_own(self, command, trained, tmp_path, capsys):
        moved = shutil.move(trained / "tiny-0000.model", tmp_path / "moved.model")
        shutil.rmtree(trained)
        place = ("--result-path", tmp_path / "a/b", "--result-name", "mine")
        assert command(TEST, "--ckpt", moved, *place) == 0
        assert capsys.readouterr().out == f"{tmp_path}/a/b/mine_vqa2_test2015.json\n"
        assert files(tmp_path / "a/b") == {"mine_vqa2_test2015.json", "tiny_test_ckpt_Q2AR.model"}

    def test_split_and_batch_size(self, command, trained, tmp_path, tiny_world, capsys):
        """17.20: the default is the image set of the YAML. A split with annotations can be tested too."""
        results = []
        for size in (8, 3):
            assert command(TEST, "--split", "val2014", "--bs", size) == 0
            results.append(Path(capsys.readouterr().out.strip()).read_bytes())
        assert results[0] == results[1]
        path = tmp_path / "out/tiny/val2014_test/tiny_vqa2_val2014.json"
        questions = json.loads((tiny_world / "vqa/v2_OpenEnded_mscoco_val2014_questions.json").read_text())["questions"]
        assert [r["question_id"] for r in json.loads(path.read_text())] == [q["question_id"] for q in questions]

    def test_model_dir_stands_before_the_output_path(self, command, cfg_path, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        short = ("--set", "OUTPUT_PATH=out", "TRAIN.END_EPOCH=1", "--model-dir", "dir")
        assert command(TRAIN, *short, "--log-dir", "logs") == 0
        assert command(TEST, *short) == 0
        assert (tmp_path / "dir/out/tiny/test2015_test/tiny_vqa2_test2015.json").is_file()
        assert any(name.startswith("events.") for name in files(tmp_path / "logs"))


class TestVal:
    def truth(self, world: Path, split: str = "val2014") -> list[dict]:
        rows = json.loads((world / f"vqa/v2_mscoco_{split}_annotations.json").read_text())["annotations"]
        return [{"question_id": r["question_id"], "answer": r["multiple_choice_answer"]} for r in rows]

    def test_a_result_file(self, command, tiny_world, tmp_path, capsys):
        """All answers but one are right: (n - 1) / n."""
        truth = self.truth(tiny_world)
        truth[0]["answer"] = "nonsense"
        (tmp_path / "result.json").write_text(json.dumps(truth))
        assert command(VAL, "--result", tmp_path / "result.json", "--out", tmp_path / "scores.json") == 0
        percent = 100 * (len(truth) - 1) / len(truth)
        last = capsys.readouterr().out.splitlines()[-1].split()
        assert last == ["overall", str(len(truth)), f"{percent:.2f}"]
        scores = json.loads((tmp_path / "scores.json").read_text())
        assert scores["overall"] == {"accuracy": pytest.approx(percent), "count": len(truth)}

    def test_a_model_scores_as_its_result_file_does(self, command, trained, capsys):
        assert command(TEST, "--split", "val2014") == 0
        result = capsys.readouterr().out.strip()
        assert command(VAL, "--result", result) == 0
        expected = capsys.readouterr().out
        assert command(VAL) == 0
        assert capsys.readouterr().out == expected
        assert command(VAL, "--ckpt", trained / "tiny-best.model", "--bs", 3) == 0
        assert capsys.readouterr().out == expected

    def test_another_split(self, command, tiny_world, tmp_path, capsys):
        truth = self.truth(tiny_world, "train2014")
        (tmp_path / "result.json").write_text(json.dumps(truth))
        assert command(VAL, "--result", tmp_path / "result.json", "--split", "train2014") == 0
        assert capsys.readouterr().out.splitlines()[-1].split() == ["overall", str(len(truth)), "100.00"]


class TestMistakes:
    """Each ends with exit status 1 and one error line that names the cause."""

    def test_missing_config(self, error, tmp_path):
        assert error(TRAIN, "--cfg", tmp_path / "no.yaml") == f"no configuration file {tmp_path}/no.yaml"

    def test_broken_yaml(self, error, tmp_path):
        (tmp_path / "bad.yaml").write_text("TRAIN:\n  LR: [1\n")
        assert "bad.yaml: no valid YAML" in error(TRAIN, "--cfg", tmp_path / "bad.yaml")

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("DATASET.DATASET_PATH=/no", "/no/vqa/v2_OpenEnded_mscoco_train2014_questions.json: no such file"),
            ("DATASET.ANSWER_VOCAB_FILE=/no", "/no (DATASET.ANSWER_VOCAB_FILE): no such file"),
            ("DATASET.ANSWER_VOCAB_SIZE=3129", "ANSWER_VOCAB_SIZE is 3129"),
            ("DATASET.TRAIN_IMAGE_SET=train2015", "image set 'train2015'"),
            ("DATASET.TRAIN_IMAGE_SET=test2015", "image set test2015: it has no answers"),
            ("DATASET.USE_IMDB=true", "imdb_train2014.npy: no such file"),
            ("DATASET.BOXES=36", "no region files; looked for"),
            ("NETWORK.BERT_MODEL_NAME=/no", "BERT vocabulary /no not found"),
            ("NETWORK.PARTIAL_PRETRAIN=/no", "checkpoint /no: no such file"),
            ("NETWORK.BERT_RANDOM_INIT=false", "language weights: "),
            ("NETWORK.BLIND=true", "NETWORK.BLIND = True: expected False"),
        ],
    )
    def test_wrong_values_in_training(self, error, override, message):
        assert message in error(TRAIN, "--set", override)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_missing_region_file_in_the_middle_of_training(self, error, world, workers):
        """The error is the same where it is raised in a worker process, whose message is a traceback."""
        regions = world / "vgbua_res101_precomputed"
        shutil.rmtree(next(regions.glob("trainval*.packed")))  # it would be read instead of the files
        for path in regions.glob("trainval*/[1-9].json"):
            path.unlink()
        text = error(TRAIN, "--set", f"DATASET.DATASET_PATH={world}", f"NUM_WORKERS_PER_GPU={workers}")
        assert re.search(r"No such file .*trainval2014_resnet101_faster_rcnn_genome/\d\.json", text)

    def test_a_damaged_image_that_a_worker_meets(self, error, world):
        for path in (world / "train2014").iterdir():
            path.write_bytes(b"no image")
        images = ["NETWORK.IMAGE_FEAT_PRECOMPUTED=false", "NETWORK.IMAGE_RANDOM_INIT=true"]
        text = error(TRAIN, "--set", f"DATASET.DATASET_PATH={world}", *images)
        assert re.match(r"unreadable image .*/COCO_train2014_\d+\.jpg", text)

    def test_an_image_without_metadata(self, error, world):
        (world / "annotations/instances_train2014.json").write_text('{"images": []}')
        text = error(TRAIN, "--set", f"DATASET.DATASET_PATH={world}")
        assert re.search(r"instances_train2014\.json: no image \d, which question \d+ asks about$", text)

    def test_broken_questions(self, error, world):
        (world / "vqa/v2_OpenEnded_mscoco_train2014_questions.json").write_text('{"questions": [\n{]}')
        text = error(TRAIN, "--set", f"DATASET.DATASET_PATH={world}")
        assert "train2014_questions.json: not valid JSON: " in text and "{]}" in text

    def test_testing_before_training(self, error, tmp_path):
        assert error(TEST) == f"checkpoint {tmp_path}/out/tiny/train2014_train/tiny-best.model: no such file"

    def test_a_file_that_is_no_checkpoint(self, error, cfg_path):
        assert f"checkpoint {cfg_path}: cannot be read" in error(TEST, "--ckpt", cfg_path)
        assert f"checkpoint {cfg_path}: cannot be read" in error(VAL, "--ckpt", cfg_path)

    def test_a_checkpoint_of_something_else(self, error, tmp_path):
        torch.save({"weights": torch.zeros(2)}, tmp_path / "other.model")
        assert (
            error(TEST, "--ckpt", tmp_path / "other.model") == f"checkpoint {tmp_path}/other.model: has no state_dict"
        )

    def test_a_checkpoint_of_another_size(self, error, trained):
        best = checkpoint.best_path(trained, "tiny")
        text = error(TEST, "--ckpt", best, "--set", "NETWORK.VLBERT.num_hidden_layers=1")
        assert f"{best} does not fit the configured model" in text and "unknown vlbert.encoder.layer.1." in text

    def test_a_batch_size_of_nothing(self, error):
        assert "TEST.BATCH_IMAGES = 0: expected at least 1" in error(TEST, "--bs", 0)
        assert "VAL.BATCH_IMAGES = 0: expected at least 1" in error(VAL, "--bs", 0)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("[\nx", "not valid JSON at line 2"),
            ("{}", "expected a list of results, found dict"),
            ('[{"question_id": 1}]', "entry 0 is {'question_id': 1}, expected question_id and answer"),
            ("[]", "question ids without a prediction: 500001000, "),
            (
                '[{"question_id": 1, "answer": "a"}, {"question_id": 1, "answer": "a"}]',
                "more than once in the predictions: 1",
            ),
        ],
        ids=["no JSON", "no list", "no answer", "missing", "twice"],
    )
    def test_broken_result_files(self, error, tmp_path, content, message):
        (tmp_path / "result.json").write_text(content)
        assert message in error(VAL, "--result", tmp_path / "result.json")

    def test_missing_files_of_val(self, error, tmp_path):
        assert error(VAL, "--result", tmp_path / "no.json") == f"result file {tmp_path}/no.json: no such file"
        assert "v2_mscoco_test2015_annotations.json: no such file" in error(VAL, "--split", "test2015")

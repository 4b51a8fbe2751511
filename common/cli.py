"""The command lines of all tasks: `train(task_name)` and `test(task_name)` are whole entry points.

Modules that import PyTorch are imported after the arguments are parsed, so that `--help` and a mistyped flag return at
once.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

if TYPE_CHECKING:
    from common.config import Config
    from common.train.run import WrittenResults

log = logging.getLogger(__name__)

P = ParamSpec("P")


@dataclass(frozen=True)
class TrainFlags:
    """The command line of training. cfg: YAML file. overrides: KEY=VALUE. The others are flags of the same name."""

    cfg: Path
    overrides: tuple[str, ...]
    model_dir: str | None
    log_dir: str | None
    dist: bool
    slurm: bool
    do_test: bool
    cudnn: bool


@dataclass(frozen=True)
class TestFlags:
    """The command line of testing. cfg: YAML file. overrides: KEY=VALUE. The others are flags of the same name."""

    __test__ = False  # no class of tests for pytest

    cfg: Path
    overrides: tuple[str, ...]
    model_dir: str | None
    ckpt: Path | None
    result_path: Path | None
    result_name: str | None


def train(task_name: str, argv: Sequence[str] | None = None) -> None:
    """Entry point of training. Parses the command line, trains, and exits with the status of `guarded`."""
    parser = argparse.ArgumentParser(description=f"Train VL-BERT for {task_name}.")
    add_config_arguments(parser)
    parser.add_argument("--log-dir", help="folder of the TensorBoard files (default: inside the run's folder)")
    parser.add_argument("--partial-pretrain", metavar="FILE|DIR", help="overrides NETWORK.PARTIAL_PRETRAIN")
    parser.add_argument(
        "--dist", action="store_true", help="one of several processes, as scripts/launch.py starts them"
    )
    parser.add_argument("--slurm", action="store_true", help="one of the tasks of srun, whose variables say which")
    parser.add_argument(
        "--do-test", action="store_true", help="write the test results of the best checkpoint afterwards"
    )
    parser.add_argument("--cudnn-off", action="store_true", help="do not use cuDNN")
    args = parser.parse_args(argv)
    flags = TrainFlags(
        cfg=Path(args.cfg),
        overrides=overrides(args.set, {"NETWORK.PARTIAL_PRETRAIN": args.partial_pretrain or None}),
        model_dir=args.model_dir,
        log_dir=args.log_dir,
        dist=args.dist,
        slurm=args.slurm,
        do_test=args.do_test,
        cudnn=not args.cudnn_off,
    )
    sys.exit(guarded(_train, task_name, flags))


def test(
    task_name: str,
    argv: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    default_split: str | None = None,
) -> None:
    """Entry point of testing. Writes the result file of one split and exits with the status of `guarded`.

    splits: the allowed values of --split, None for any. default_split: without --split; None takes
    DATASET.TEST_IMAGE_SET.
    """
    parser = argparse.ArgumentParser(description=f"Write the {task_name} results of a checkpoint.")
    add_config_arguments(parser)
    add_test_arguments(parser)
    default = f"default: {default_split}" if default_split else "default: that of the config"
    parser.add_argument("--split", choices=splits, default=default_split, help=f"DATASET.TEST_IMAGE_SET ({default})")
    args = parser.parse_args(argv)
    keys = {
        "TEST.BATCH_IMAGES": args.bs,
        "GPUS": gpu_key(args.gpus),
        "DATASET.TEST_IMAGE_SET": args.split or None,
    }
    flags = TestFlags(
        cfg=Path(args.cfg),
        overrides=overrides(args.set, keys),
        model_dir=args.model_dir,
        ckpt=Path(args.ckpt) if args.ckpt else None,
        result_path=Path(args.result_path) if args.result_path else None,
        result_name=args.result_name,
    )
    sys.exit(guarded_on(args.gpus, _test, task_name, flags))


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cfg", required=True, metavar="FILE", help="YAML file of the run")
    parser.add_argument("--model-dir", metavar="DIR", help="put in front of OUTPUT_PATH")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override keys: TRAIN.LR=1e-5 ..."
    )


def add_test_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ckpt",
        metavar="FILE|DIR",
        help="checkpoint or model folder (default: the best one of the config's training run)",
    )
    parser.add_argument("--bs", type=int, metavar="N", help="overrides TEST.BATCH_IMAGES")
    parser.add_argument("--gpus", type=int, nargs="+", metavar="GPU", help="overrides GPUS")
    parser.add_argument("--result-path", metavar="DIR", help="folder of the results (default: beside the training run)")
    parser.add_argument("--result-name", metavar="NAME", help="stem of the result file (default: that of the config)")


def overrides(given: Sequence[str], flags: Mapping[str, object | None]) -> tuple[str, ...]:
    """Overrides of a config, KEY=VALUE: those of `--set`, then the keys of other flags.

    flags: key of the config -> value of its flag, None where the flag was not given.
    """
    return (*given, *(f"{key}={value}" for key, value in flags.items() if value is not None))


def gpu_key(gpus: Sequence[int] | None) -> str | None:
    """The value of GPUS for `--gpus`, None without any."""
    return ",".join(map(str, gpus)) if gpus else None


def load_run_config(
    task_name: str, path: Path | str, overrides: Sequence[str] = (), model_dir: str | None = None
) -> Config:
    """The config of a run: a YAML file with overrides KEY=VALUE.

    model_dir: put in front of OUTPUT_PATH. Raises ConfigError for a bad config, FileNotFoundError without the file.
    """
    from common.config import load_config, replace

    cfg = load_config(task_name, path, list(overrides))
    return replace(cfg, {"OUTPUT_PATH": str(Path(model_dir) / cfg.OUTPUT_PATH)}) if model_dir else cfg


# ---------------------------------------------------------------------------------------------- errors


def guarded_on(gpus: Sequence[int] | None, run: Callable[P, int | None], *args: P.args, **kwargs: P.kwargs) -> int:
    """`guarded`, in one process for each entry of `gpus` where there are several.

    The processes form a group on this machine, and process r has GPU gpus[r]. Without CUDA they run on the CPU.
    """
    if not gpus or len(gpus) == 1:
        return guarded(run, *args, **kwargs)
    from common.errors import UserError
    from common.log import setup_logging
    from common.train.launch import run_local

    try:
        return run_local(gpus, partial(guarded, run, *args, **kwargs))
    except UserError as error:
        setup_logging()
        log.error("%s", one_line(error))
        return 1


def guarded(run: Callable[P, int | None], *args: P.args, **kwargs: P.kwargs) -> int:
    """Call an entry point. Errors that the user can mend are logged as one line, others keep their traceback.

    Returns the exit status: what `run` returns (None is 0), 1 for an error, 128 + signal for a run that a signal
    stopped after it saved its position.
    """
    import yaml

    from common import distributed
    from common.errors import UserError
    from common.failures import report_failure
    from common.log import setup_logging
    from common.train.signals import Stopped

    setup_logging()
    try:
        return int(run(*args, **kwargs) or 0)
    except Stopped as stop:
        log.warning("%s", stop)
        report_failure(stop, str(stop))
        return 128 + stop.signum
    except (UserError, OSError, FloatingPointError, yaml.YAMLError) as error:
        if not report_failure(error, one_line(error)):
            log.error("%s", one_line(error))
        return 1
    except Exception as error:
        line = one_line(error) if is_disk_error(error) else ""
        if not report_failure(error, line):
            if not line:
                raise
            log.error("%s", line)
        return 1
    finally:
        distributed.shutdown()


def is_disk_error(error: Exception) -> bool:
    """Whether the disk is full, over its quota, read-only or faulty, and not the program."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def one_line(error: Exception) -> str:
    """The message of an error without line breaks. Of an error in a loader's worker, only the message raised there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[1].startswith("Original Traceback"):
        return lines[-1].partition(": ")[2]
    return " ".join(lines)


# ---------------------------------------------------------------------------------------------- what the entries run


def _train(task_name: str, flags: TrainFlags) -> None:
    from common.task import load_task

    find_place(flags.dist, flags.slurm)
    task = load_task(task_name)
    cfg = load_run_config(task_name, flags.cfg, flags.overrides, flags.model_dir)
    from common.train.run import run_test, run_training

    run_training(task, cfg, flags.cfg, log_dir=flags.log_dir, cudnn=flags.cudnn)
    if flags.do_test and task.has_results:
        show(run_test(task, cfg, flags.cfg))


def _test(task_name: str, flags: TestFlags) -> None:
    from common.task import load_task
    from common.train.run import run_test

    cfg = load_run_config(task_name, flags.cfg, flags.overrides, flags.model_dir)
    show(run_test(load_task(task_name), cfg, flags.cfg, flags.ckpt, flags.result_path, flags.result_name))


def show(result: WrittenResults) -> None:
    """Print the summary of a test run and the path of its file, on rank 0."""
    from common import distributed

    if distributed.is_main():
        if result.summary:
            print(result.summary)
        print(result.path)


def find_place(dist: bool, slurm: bool) -> None:
    """Check that the environment has the rank of this process. slurm: set it from the variables of SLURM.

    Raises ConfigError for `dist` without rank, and for `slurm` without those variables.
    """
    from common.errors import ConfigError

    if slurm:
        from common.train.launch import slurm_environment

        os.environ.update(slurm_environment(os.environ))
    missing = [name for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if dist and missing:
        raise ConfigError(
            f"--dist: {', '.join(missing)} not set; start with scripts/dist_run_single.sh, with torchrun, "
            "or with --slurm under srun"
        )

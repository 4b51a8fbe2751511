"""The command lines of all tasks: `train(TASK)` and `test(TASK)` are whole entry points.

Heavy imports happen after the arguments are parsed, so that `--help` and a mistyped flag answer at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.train.run import WrittenResults

log = logging.getLogger(__name__)


def train(task_name: str, argv: Sequence[str] | None = None) -> None:
    """Entry point of training: parses the command line and exits with its status."""
    parser = argparse.ArgumentParser(description=f"Train VL-BERT for {task_name}.")
    add_config_arguments(parser)
    parser.add_argument("--log-dir", help="folder of the TensorBoard files (default: inside the run's folder)")
    parser.add_argument("--partial-pretrain", metavar="FILE", help="overrides NETWORK.PARTIAL_PRETRAIN")
    parser.add_argument(
        "--dist", action="store_true", help="one of several processes, as scripts/launch.py starts them"
    )
    parser.add_argument("--slurm", action="store_true", help="one of the tasks of srun, whose variables say which")
    parser.add_argument(
        "--do-test", action="store_true", help="write the test results of the best checkpoint afterwards"
    )
    parser.add_argument("--cudnn-off", action="store_true", help="do not use cuDNN")
    args = parser.parse_args(argv)
    if args.partial_pretrain:
        args.set.append(f"NETWORK.PARTIAL_PRETRAIN={args.partial_pretrain}")
    sys.exit(guarded(_train, task_name, args))


def test(
    task_name: str,
    argv: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    default_split: str | None = None,
) -> None:
    """Entry point of testing: writes the result file of one split.

    splits: the values of --split, None for any. default_split: without --split; None leaves DATASET.TEST_IMAGE_SET.
    """
    parser = argparse.ArgumentParser(description=f"Write the {task_name} results of a checkpoint.")
    add_config_arguments(parser)
    add_test_arguments(parser)
    default = f"default: {default_split}" if default_split else "default: that of the config"
    parser.add_argument("--split", choices=splits, default=default_split, help=f"DATASET.TEST_IMAGE_SET ({default})")
    args = parser.parse_args(argv)
    sys.exit(guarded_on(args.gpus, _test, task_name, args))


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cfg", required=True, metavar="FILE", help="YAML file of the run")
    parser.add_argument("--model-dir", metavar="DIR", help="put in front of OUTPUT_PATH")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override keys: TRAIN.LR=1e-5 ..."
    )


def add_test_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ckpt", metavar="FILE", help="checkpoint (default: the best one of the config's training run)"
    )
    parser.add_argument("--bs", type=int, metavar="N", help="overrides TEST.BATCH_IMAGES")
    parser.add_argument("--gpus", type=int, nargs="+", metavar="GPU", help="overrides GPUS")
    parser.add_argument("--result-path", metavar="DIR", help="folder of the results (default: beside the training run)")
    parser.add_argument("--result-name", metavar="NAME", help="stem of the result file (default: that of the config)")


def guarded_on(gpus: Sequence[int] | None, run: Any, *args: Any) -> int:
    """`guarded`, in one process for each entry of `gpus` where there are several.

    The processes form a group on this machine, and process r has GPU gpus[r]; without CUDA they run on the CPU.
    """
    if not gpus or len(gpus) == 1:
        return guarded(run, *args)
    from common.train.launch import run_local

    return run_local(gpus, guarded, run, *args)


def guarded(run: Any, *args: Any) -> int:
    """Run an entry point; what the user can mend ends in one line instead of a traceback.

    Exit status: what `run` returns (None is 0), 1 for an error, 128 + signal for a run that a signal stopped after it
    saved its position.
    """
    import yaml

    from common import distributed
    from common.errors import CheckpointError, ConfigError, DataError, ImageError, RegionError
    from common.log import setup_logging
    from common.train.launch import report_failure
    from common.train.trainer import Stopped

    setup_logging()
    try:
        return int(run(*args) or 0)
    except Stopped as stop:
        log.warning("%s", stop)
        report_failure(stop, str(stop))
        return 128 + stop.signum
    except (
        ConfigError,
        FileNotFoundError,
        CheckpointError,
        DataError,
        ImageError,
        RegionError,
        FloatingPointError,
        yaml.YAMLError,
    ) as error:
        if not report_failure(error, one_line(error)):
            log.error("%s", one_line(error))
        return 1
    except Exception as error:
        if not report_failure(error):
            raise
        return 1
    finally:
        distributed.shutdown()


def one_line(error: Exception) -> str:
    """The message of an error without line breaks; of one from a loader's worker only what was raised there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[1].startswith("Original Traceback"):
        return lines[-1].partition(": ")[2]
    return " ".join(lines)


# ---------------------------------------------------------------------------------------------- what the entries run


def _train(task_name: str, args: argparse.Namespace) -> None:
    from common.task import load_task

    find_place(args.dist, args.slurm)
    task = load_task(task_name)
    cfg = load_run_config(task_name, args)
    from common.train.run import run_training

    run_training(task, cfg, Path(args.cfg), log_dir=args.log_dir, cudnn=not args.cudnn_off)
    if args.do_test and task.has_results:
        from common.train.run import run_test

        show(run_test(task, cfg, Path(args.cfg)))


def _test(task_name: str, args: argparse.Namespace) -> None:
    from common.task import load_task
    from common.train.run import run_test

    task = load_task(task_name)
    show(
        run_test(
            task,
            load_run_config(task_name, args),
            Path(args.cfg),
            ckpt=args.ckpt and Path(args.ckpt),
            result_path=args.result_path and Path(args.result_path),
            result_name=args.result_name,
        )
    )


def show(result: WrittenResults) -> None:
    """The summary of a test run and the path of its file, on rank 0."""
    from common import distributed

    if distributed.is_main():
        print(*([result.summary] if result.summary else []), result.path, sep="\n")


def find_place(dist: bool, slurm: bool) -> None:
    """Make sure that the environment says which of several processes this one is. Raises ConfigError otherwise."""
    from common.errors import ConfigError

    if slurm:
        from common.train.launch import slurm_environment

        try:
            os.environ.update(slurm_environment(os.environ))
        except ValueError as error:
            raise ConfigError(str(error)) from error
    missing = [name for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if dist and missing:
        raise ConfigError(
            f"--dist: {', '.join(missing)} not set; start with scripts/dist_run_single.sh, with torchrun, "
            "or with --slurm under srun"
        )


def load_run_config(task_name: str, args: argparse.Namespace) -> Any:
    """The config of a command line: file, `--set`, and the flags that stand for keys."""
    from common.config import load_config, replace

    overrides = list(args.set)
    if getattr(args, "bs", None) is not None:
        overrides.append(f"TEST.BATCH_IMAGES={args.bs}")
    if getattr(args, "gpus", None):
        overrides.append(f"GPUS={','.join(map(str, args.gpus))}")
    if getattr(args, "split", None):
        overrides.append(f"DATASET.TEST_IMAGE_SET={args.split}")
    cfg = load_config(task_name, args.cfg, overrides)
    return replace(cfg, {"OUTPUT_PATH": str(Path(args.model_dir) / cfg.OUTPUT_PATH)}) if args.model_dir else cfg

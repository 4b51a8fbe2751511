"""Compiles the CUDA runtime of tests/gpu/shim and runs Python programs with it.

It needs a C compiler and a CUDA build of PyTorch, whose pip packages hold the CUDA headers.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch

from tests.paths import ROOT

SOURCES = Path(__file__).with_name("shim")
RUNTIME, DRIVER = "libfakecudart.so", "libcuda.so.1"
COMPILE = ("-shared", "-fPIC", "-w", "-O1")


class Unavailable(Exception):  # noqa: N818 - a reason to skip
    """Why there is no fake GPU on this machine."""


def compiler() -> str | None:
    """Returns the path of a C compiler."""
    return next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)


def headers() -> Path | None:
    """Returns the folder of driver_types.h: in a pip package of NVIDIA, in Triton, or in an installed CUDA."""
    packages = Path(sysconfig.get_path("purelib"))
    folders = sorted(packages.glob("nvidia/*/include"))
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin:
        folders.insert(0, Path(triton.origin).parent / "backends/nvidia/include")
    folders.append(Path("/usr/local/cuda/include"))
    return next((f for f in folders if (f / "driver_types.h").is_file() and _complete(f)), None)


def _complete(folder: Path) -> bool:
    """Whether the headers include the compiler's own, which some packages leave out."""
    return (folder / "crt/host_defines.h").is_file()


def build(folder: Path) -> Path:
    """Compiles runtime and driver into `folder`. Returns it. Raises Unavailable with the reason."""
    if torch.version.cuda is None:
        raise Unavailable(f"torch {torch.__version__} is not a CUDA build")
    cc, include = compiler(), headers()
    if cc is None:
        raise Unavailable("no C compiler (cc, gcc or clang)")
    if include is None:
        raise Unavailable("no CUDA headers (crt/host_defines.h) in the packages triton and nvidia-cuda-runtime")
    for source, target in (("cudart.c", RUNTIME), ("cuda.c", DRIVER)):
        command = [cc, *COMPILE, f"-I{include}", str(SOURCES / source), "-o", str(folder / target)]
        if target == DRIVER:
            command.append(f"-Wl,-soname,{DRIVER}")
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"{cc} cannot compile {source}: {done.stderr.strip().splitlines()[:1]}")
    return folder


def environment(folder: Path, gpus: int = 1) -> dict[str, str]:
    """Returns the environment of a process that has `gpus` fake GPUs. folder: what `build` returned."""
    paths = {
        "LD_PRELOAD": str(folder / RUNTIME),
        "LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":"),
        "PYTHONPATH": str(ROOT),
        "FAKE_GPUS": str(gpus),
        "OMP_NUM_THREADS": "1",
    }
    kept = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    return kept | paths


def active() -> bool:
    """Whether this process runs with the fake CUDA runtime."""
    return RUNTIME in os.environ.get("LD_PRELOAD", "")


def run_again(module: str, arguments: list[str]) -> int:
    """Runs `python -m module arguments` with a fake GPU. Returns its exit status."""
    with tempfile.TemporaryDirectory(prefix="fake-gpu-") as folder:
        try:
            env = environment(build(Path(folder)))
        except Unavailable as reason:
            print(f"no fake GPU: {reason}", file=sys.stderr)
            return 2
        return subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, env=env).returncode

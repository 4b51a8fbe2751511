"""The compiled CUDA runtime that computes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu import fake_gpu


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the compiled shim. Tests that need it are skipped, with the reason, where it cannot be built."""
    try:
        return fake_gpu.build(tmp_path_factory.mktemp("shim"))
    except fake_gpu.Unavailable as reason:
        pytest.skip(f"no fake GPU: {reason}. The CUDA path was NOT tested")

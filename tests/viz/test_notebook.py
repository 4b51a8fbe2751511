"""The notebook runs from its first cell to its last."""

from __future__ import annotations

import pytest

from tests.paths import ROOT

nbformat = pytest.importorskip("nbformat", reason="no nbformat: the notebook was not run")
nbclient = pytest.importorskip("nbclient", reason="no nbclient: the notebook was not run")
pytest.importorskip("ipykernel", reason="no ipykernel: the notebook was not run")

NOTEBOOK = ROOT / "viz/attention.ipynb"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_runs(vqa_ckpt, image, monkeypatch):
    monkeypatch.setenv("VLBERT_CKPT", str(vqa_ckpt))
    monkeypatch.setenv("VLBERT_IMAGE", str(image))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    code = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [next((o for o in cell if o.output_type == "execute_result"), None) for cell in code]
    assert "probability" in outputs[1].data["text/plain"]
    assert "VLBertViewer" in outputs[-1].data["text/html"]


def test_it_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")

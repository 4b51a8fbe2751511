# Needs Python >= 3.10 only: each target first makes .venv and installs the requirements there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: setup demo demo-vcr demo-refcoco demo-pretrain demo-easy-vqa serve test test-browser test-slow gpu-check golden lint format doctor clean

setup: $(INSTALLED)

$(INSTALLED): requirements.txt requirements-dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

# Generates a world of coloured shapes, trains VL-BERT on VQA in it, prints the accuracy.
demo: setup
	$(BIN)/python scripts/demo_vqa.py

# Serves a page that answers questions about an image with the model of the demo and shows its attention, at
# http://127.0.0.1:8000/
serve: setup
	$(BIN)/python -m viz.serve --ckpt output/scenes/scenes/train2014_train/vl-bert_scenes-best.model

# The same world: VCR (answers and rationales), and RefCOCO+ (referring expressions).
demo-vcr: setup
	$(BIN)/python scripts/demo_vcr.py

demo-refcoco: setup
	$(BIN)/python scripts/demo_refcoco.py

# Pretrains on captions and text, then trains on a few questions, with and without the pretrained weights.
demo-pretrain: setup
	$(BIN)/python scripts/demo_pretrain.py

# A public data set (PyPI package easy-vqa) as a user's own data: records, training, accuracy on its test split.
demo-easy-vqa: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps easy-vqa
	$(BIN)/python scripts/demo_easy_vqa.py

# In two processes; the tests of a file stay together, because they share trained runs.
test: setup
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

# Tests the report and the live page in a browser. Installs Chromium with apt-get if there is none.
test-browser: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check playwright
	command -v chromium chromium-browser google-chrome || apt-get install -y chromium || sudo apt-get install -y chromium
	$(BIN)/python -m pytest tests/viz/test_browser.py

test-slow: setup
	$(BIN)/python -m pytest -m slow

# On a machine with a GPU, at most ten minutes: tests, reference numbers, loss curves, speed. docs/gpu.md
gpu-check: setup
	$(BIN)/python -m tests.gpu.check --docs

# Compares with reference numbers: make golden GOLDEN=<folder> (a folder with the layout of tests/golden/cases).
GOLDEN ?= tests/golden/cases
golden: setup
	$(BIN)/python -m tests.golden $(GOLDEN)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

doctor: setup
	$(BIN)/python -m common.doctor

clean:
	rm -rf output cache .pytest_cache .mypy_cache .ruff_cache

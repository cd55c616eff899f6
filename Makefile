# `make demo` and `make test` each set up all they need in $(VENV).
PYTHON ?= python3
VENV ?= .venv
# A CPU build where pip's index has one; `make test TORCH=torch` takes the newest for your GPU.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test slow lint completions check-completions clean

demo: $(READY)  ## fine-tune, merge and score a small Whisper in five languages
	PATH="$(abspath $(BIN)):$$PATH" examples/demo/demo.sh

test: $(READY)  ## every test but the slow ones and those that need a GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest  # on tiny tensors threads cost more than they bring

slow: $(READY)  ## those that take more than a few seconds
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

completions: $(READY)  ## write completions/ anew
	$(BIN)/python completions/generate.py

check-completions: completions
	git diff --exit-code -- completions

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -m pip install -q -e ".[dev]"
	$(BIN)/python -m pip install -q --no-deps openai-whisper==20250625  # its vocabularies, for tests
	touch $@

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

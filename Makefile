# `make demo` and `make test` each set up all they need in $(VENV).
PYTHON ?= python3
VENV ?= .venv
# A CPU build where pip's index has one; `make test TORCH=torch` takes the newest for your GPU.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A process a core; on tiny tensors threads cost more than they bring.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: demo test test-lowest slow lint completions check-completions clean

demo: $(READY)  ## fine-tune, merge and score a small Whisper in five languages
	PATH="$(abspath $(BIN)):$$PATH" examples/demo/demo.sh

test: $(READY)  ## every test but the slow ones and those that need a GPU
	$(PYTEST)

# The files that meet the libraries most; the old libraries' own deprecations are not ours.
LOWEST_TESTS ?= tests/operations tests/speech/decoding/test_clips.py tests/speech/test_training.py tests/core/test_eigen.py
test-lowest:  ## some of the tests, on the lowest versions that pyproject.toml admits
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install -q uv
	$(VENV)-lowest/bin/uv pip install -q --python $(VENV)-lowest/bin/python --only-binary :all: \
		--resolution lowest-direct -r pyproject.toml --extra dev
	OMP_NUM_THREADS=1 $(VENV)-lowest/bin/python -m pytest -W ignore::DeprecationWarning $(LOWEST_TESTS)

slow: $(READY)  ## those that take more than a few seconds each
	$(PYTEST) -m slow

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
	rm -rf $(VENV) $(VENV)-lowest demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Every target does the set-up that it needs. PYTHON may name an interpreter (3.11 to 3.13).
PYTHON ?= $(shell command -v python3.13 || command -v python3.12 || command -v python3.11 || command -v python3)
BIN := .venv/bin
SECONDS ?=

.PHONY: setup demo test lint bench lock clean kafka

setup: .venv/.ready

.venv/.ready: requirements-dev.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "make setup: $(PYTHON) is not Python 3.11 to 3.13; install one or say make PYTHON=/path/to/python3.12"; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' \
	  || { echo "make setup: $(PYTHON) has no venv module; on Debian: apt install python3-venv"; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	$(BIN)/edge-agent demo $(if $(SECONDS),--seconds $(SECONDS))

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

kafka: setup
	$(BIN)/python tests/kafka/fetch.py

test: lint kafka
	$(BIN)/pytest

bench: setup kafka
	$(BIN)/python -m bench

lock: setup
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q \
	  pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q \
	  --extra demo --extra dev pyproject.toml -o requirements-dev.lock

clean:
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info

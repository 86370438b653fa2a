# Every target does the set-up that it needs. PYTHON may name the interpreters to try (3.11 to 3.13).
PYTHON ?= python3 python3.13 python3.12 python3.11
BIN := .venv/bin
TRAINING := .venv-training/bin
FLEET := .venv-fleet/bin
SEED ?= 1
OUT ?= models_tflite/bundles
SECONDS ?=

.PHONY: setup demo test lint bench lock clean kafka mutants torture train test-training test-fleet sbom soup audit test-arm64

setup: .venv/.ready

.venv/.ready: requirements-dev.lock pyproject.toml
	@rm -rf .venv; for python in $(PYTHON); do \
	  if $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
	  then $$python -m venv .venv && break; fi; \
	done; \
	test -x $(BIN)/python || { echo "make setup: none of $(PYTHON) is a Python 3.11 to 3.13 with venv."; \
	  echo "  On Debian: apt install python3-venv. Or say make PYTHON=/path/to/python3.12"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# TensorFlow and its like, for training alone; about 3 GB
.venv-training/.ready: requirements-training.lock
	@test -x $(BIN)/python || $(MAKE) setup
	@rm -rf .venv-training; $(BIN)/python -m venv .venv-training
	$(TRAINING)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-training.lock
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
	$(BIN)/pytest -n 2 --dist loadfile --junitxml=.cache/tests.xml
	$(BIN)/python -m tests.requirements --results .cache/tests.xml

# how many small faults in the alarm and the watch room the tests would notice; goes on where it was stopped
mutants: setup
	nice -n 10 $(BIN)/python -m tests.mutants

# 500 kills of agent, forwarder and broker, about 15 minutes; the result goes to docs/durability.md
torture: setup kafka
	nice -n 15 $(BIN)/python -m tests.torture

# make train DATA=cinc2019.parquet KEY=signing.pem: from the public recordings to a signed bundle, see docs/model.md
train: .venv-training/.ready
	@test -n "$(DATA)" -a -n "$(KEY)" || { echo "make train: say DATA=FILE (recordings) and KEY=FILE (signing key)"; exit 1; }
	$(TRAINING)/python -m models_tflite.training.train --data "$(DATA)" --out "$(OUT)" --seed $(SEED) --sign-key "$(KEY)"

test-training: .venv-training/.ready
	$(TRAINING)/python -m pytest -q -p no:cacheprovider --noconftest -c /dev/null --rootdir . \
	  tests/test_model_training.py tests/test_model_baselines.py

# Ansible and the tools that list and check what is installed
.venv-fleet/.ready: requirements-fleet.lock
	@test -x $(BIN)/python || $(MAKE) setup
	@rm -rf .venv-fleet; $(BIN)/python -m venv .venv-fleet
	$(FLEET)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-fleet.lock
	@touch $@

# machines that boot, in containers and emulated: as root; what they boot is cached in ~/.cache/bedside-edge
test-fleet: setup .venv-fleet/.ready
	$(BIN)/pytest tests/fleet -n 2 --dist loadscope --no-loadscope-reorder --timeout 1800 --durations 15 --junitxml=.cache/fleet.xml

# what a gateway is made of: bill of materials in dist/, docs/licences.md, docs/soup.md; fails on a licence that is not allowed
sbom: setup .venv-fleet/.ready
	$(FLEET)/python -m supply.licences --write
	$(BIN)/python -m supply.soup --write
	$(FLEET)/python -m supply.sbom

soup: setup
	$(BIN)/python -m supply.soup --write

# known holes in what a gateway installs; exit status 3 where the advisories cannot be had, 0 with AUDIT=--tell
audit: .venv-fleet/.ready
	$(FLEET)/python -m supply.audit $(AUDIT)

# every night: an arm64 system, emulated; as root, about 10 minutes
test-arm64: setup
	$(BIN)/pytest tests/fleet/nightly_arm64.py --timeout 3600 --junitxml=.cache/arm64.xml

bench: setup kafka
	$(BIN)/python -m bench

lock: setup
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q \
	  pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q \
	  --extra demo --extra report --extra dev pyproject.toml -o requirements-dev.lock
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q \
	  --extra training pyproject.toml -o requirements-training.lock
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q \
	  --extra fleet pyproject.toml -o requirements-fleet.lock

clean:
	rm -rf .venv .venv-training .venv-fleet .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info

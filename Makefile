# make demo: a first run, from nothing to pictures.   make test: all tests but the slow ones.   Both install what they need.
# The first working Python of 3.13, 3.12, 3.11 and 3.14, on PATH or among pyenv's; make PYTHON=... sets another one.
PYTHON ?= $(shell for v in 3.13 3.12 3.11 3.14; do for p in python$$v "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$v.*/bin/python; do \
	"$$p" -c 'import venv, ensurepip' 2>/dev/null && { echo "$$p"; exit; }; done; done)
VENV := .venv
BIN := $(VENV)/bin

OLDEST := .venv-oldest
# The oldest jax that pyproject.toml allows, on the oldest available Python.
OLDEST_PYTHON ?= $(shell for p in python3.11 "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.11.*/bin/python $(PYTHON); do \
	"$$p" -c 'import venv, ensurepip' 2>/dev/null && { echo "$$p"; exit; }; done)

.PHONY: venv demo test slow oldest faults lint docs clean

venv: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.14 found: install one, or say make PYTHON=/its/path" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: venv
	$(BIN)/python -m dualcl_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

test: venv
	$(BIN)/python -m compileall -q dualcl_jax configs experiments tests  # for the many processes of the tests
	$(BIN)/python -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder

slow: venv $(VENV)/docs $(VENV)/gcs
	$(BIN)/python -m pytest -m slow --ignore=tests/method/test_sharded_queue.py
	TEST_DEVICES=8 $(BIN)/python -m pytest -m slow tests/method/test_sharded_queue.py

# A short check that the oldest jax still runs a step and reads what newer versions wrote.
oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m dualcl_jax.selftest
	$(OLDEST)/bin/python -m pytest tests/workdir/test_stored_files.py

$(OLDEST)/installed: pyproject.toml constraints.txt
	$(OLDEST_PYTHON) -m venv $(OLDEST)
	grep -v '^jax' constraints.txt >$(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(OLDEST)/constraints.txt \
		--no-compile --editable . hypothesis pytest "jax==$$(sed -n 's/.*"jax>=\([0-9.]*\)".*/\1/p' pyproject.toml).0"
	@touch $@

faults: venv
	nice -n 10 $(BIN)/python -m tests.faults.long

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/docs
	$(BIN)/python -m sphinx -W --keep-going -q -E -b html -d build/doctrees docs build/site
	@echo build/site/index.html

$(VENV)/docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

# The slow tests of gs:// need a client and an emulator.
$(VENV)/gcs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[gcs]' \
		gcp-storage-emulator
	@touch $@

clean:
	rm -rf $(VENV) $(OLDEST) runs

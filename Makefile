# Two commands for a newcomer: `make repro` and `make test`. Both set up what they need.
VENV := .venv
READY := $(VENV)/.ready
# The first Python on this machine that the pins are made for.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
	&& echo $$python && break; done)

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PYTHONUTF8 := 1
# Stages and tests start hundreds of programs: compiled modules are kept, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: repro test check clean

repro: $(READY)
	@dvc repro
	@python pipelines/findings.py

# Passive waiting: threads that spin make each other slow where the machine is shared. The tests of a
# file stay together: they share what is slow to make.
test: $(READY)
	@OMP_WAIT_POLICY=PASSIVE python -m pytest --numprocesses logical --maxprocesses 4 \
		--dist loadfile --no-loadscope-reorder

check: $(READY)
	@ruff check .
	@ruff format --check .
	@mypy
	@lint-imports --no-cache

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found; install one" >&2; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON) (some minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt --editable ".[dev]"
	@touch $@

clean:
	@rm -rf $(VENV) runs

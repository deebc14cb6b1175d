# Two commands do everything on a fresh machine: `make demo` and `make test`. With a GPU: `make GPU=1 demo`.
PYTHON ?= python3
PIP = .venv/bin/python -m pip --disable-pip-version-check install --quiet
# Exact versions of everything that was tested; renewed by `make lock`. Python 3.10 cannot have some of the newest. With
# GPU=1 torch is not among them: the one on PyPI comes with CUDA, the locked one is meant for CPUs.
LOCK := lock/cpu$(shell $(PYTHON) -c 'import sys; print("-python3.10" * (sys.version_info < (3, 11)))').txt
LABEL_STUDIO_LOCK = label_studio_segagent/labelstudio/label-studio.txt
# Their requirements are out of date (label-studio-ml 1.0.9 pins a Flask of 2020, see backend/README.md), cannot be had
# (segment-anything wants torchvision, which has no CPU build on PyPI; its tests bring the four functions that it calls)
# or are of no use to the one module that is tested against (label-studio-sdk).
WITHOUT_REQUIREMENTS = label-studio-ml label-studio-sdk segment-anything

.PHONY: demo test lint unit e2e test-pythons test-latest lock system clean

demo: .venv/installed  ## install, pre-annotate the demo photographs, show how good it was
	.venv/bin/segagent demo

test: system lint unit e2e  ## install, then lint, types, unit tests, end-to-end tests with a real Label Studio

lint: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

unit: .venv/installed-dev
	OMP_NUM_THREADS=1 .venv/bin/pytest -n auto tests/unit

e2e: .venv/installed-dev .venv-label-studio/installed
	.venv/bin/pytest tests/e2e

test-pythons:  ## what needs no torch, on each of these Pythons that is there
	.ci/test-pythons 3.10 3.12 3.13

test-latest:  ## the suite with the newest of everything, in environments of its own (the lock's torch is kept)
	.ci/test-latest $(PYTHON)

lock:  ## renew the locked versions
	.ci/lock $(PYTHON)

system:  ## what is no Python package, for the tests: Debian's redis-server, chromium and its driver
	.ci/system

.venv/installed: pyproject.toml $(LOCK)
	@echo "Installing into .venv (about 1.5 GB, a few minutes the first time)…"
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	grep -v '$(if $(GPU),^torch==,^$$)' $(LOCK) > .venv/lock.txt
	$(PIP) -c .venv/lock.txt -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) -c .venv/lock.txt -e '.[dev]'
	$(PIP) -c .venv/lock.txt --no-deps $(WITHOUT_REQUIREMENTS)
	touch $@

.venv-label-studio/installed: $(LABEL_STUDIO_LOCK) | .venv/installed
	@echo "Installing Label Studio into .venv-label-studio (about 1 GB) for the end-to-end tests…"
	.venv/bin/python -m label_studio_segagent.labelstudio.local $(@D)
	touch $@

clean:
	rm -rf .venv .venv-* demo-output .pytest_cache .mypy_cache .ruff_cache

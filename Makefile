# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
PIP = .venv/bin/python -m pip --disable-pip-version-check install --quiet
# On a machine with a GPU: make CONSTRAINTS= demo   (plain torch, with CUDA)
CONSTRAINTS ?= -c constraints-cpu.txt
LABEL_STUDIO = label-studio==1.23.2

.PHONY: demo test lint unit e2e browser clean

demo: .venv/installed  ## install, pre-annotate the demo photographs, show how good it was
	.venv/bin/segagent demo

test: lint unit e2e  ## install, then lint, types, unit tests, end-to-end tests with a real Label Studio

lint: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

unit: .venv/installed-dev
	OMP_NUM_THREADS=1 .venv/bin/pytest -n auto tests/unit

e2e: .venv/installed-dev .venv-label-studio/installed
	.venv/bin/pytest tests/e2e

browser:  ## Debian's chromium and its driver, for the browser test (needs root)
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends chromium chromium-driver

.venv/installed: pyproject.toml constraints-cpu.txt
	@echo "Installing into .venv (about 1.5 GB, a few minutes the first time)…"
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) $(CONSTRAINTS) -e .
	touch $@

# label-studio-ml 1.0.9 pins a Flask of 2020 and forgets dependencies: see backend/README.md. segment-anything wants
# torchvision, which has no CPU build there; its tests bring the four functions that it calls.
.venv/installed-dev: .venv/installed
	$(PIP) $(CONSTRAINTS) -e '.[dev]'
	$(PIP) colorama label-studio-tools redis requests 'rq<2'
	$(PIP) --no-deps label-studio-ml==1.0.9 segment-anything==1.0
	touch $@

.venv-label-studio/installed:
	@echo "Installing Label Studio into .venv-label-studio (about 1 GB) for the end-to-end tests…"
	test -x .venv-label-studio/bin/python || $(PYTHON) -m venv .venv-label-studio
	.venv-label-studio/bin/python -m pip --disable-pip-version-check install --quiet $(LABEL_STUDIO)
	touch $@

clean:
	rm -rf .venv .venv-label-studio demo-output .pytest_cache .mypy_cache .ruff_cache

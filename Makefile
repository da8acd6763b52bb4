# make demo         a tiny random model, exported, bundled and spoken to
# make check        style, types, imports and the fast tests: what to run after each change
# make test         every test, with the packages of requirements/
# make test-newest  the same tests with the newest packages that pip finds
# make lint         style, types and which folder imports which
# make lock         newer packages in requirements/
PYTHON ?= python3
BIN := .venv/bin
PACKAGES := $(patsubst %/py.typed,%,$(sort $(wildcard */py.typed)))
EXTRAS := export,cpu,rtx,serve,scale,fleet,otel,transcribe,parakeet,similarity,validate,test
NEWEST := .venv-newest

# torch has a line of its own, pinned: a looser request would fetch another build of it, and its file, and so its hash, may
# come from an index with builds for the processor. What it needs is locked and installed before it.
TORCH := torch==2.13.0
LOCKED := install --quiet --require-hashes --no-deps
# setuptools is locked too: what has no wheel is built with it.
BUILT := --no-build-isolation

.PHONY: demo check test test-newest lint lock clean

.venv/demo: pyproject.toml requirements/demo.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip $(LOCKED) --requirement requirements/demo.txt
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --no-deps $(BUILT) --editable .
	@touch $@

# ONNX Runtime for GPUs is the same module as for the processor, so it gets a folder of its own, with CUDA's headers:
# tests/cuda_stand_in runs it without a GPU.
.venv/test: .venv/demo requirements/test.txt requirements/cuda.txt requirements/clients.txt requirements/agents.txt requirements/package-lock.json requirements/deploy.txt requirements/speech.txt requirements/similarity.txt
	$(BIN)/pip $(LOCKED) $(BUILT) --requirement requirements/test.txt
	$(BIN)/pip $(LOCKED) --only-binary :all: --target .venv/cuda --upgrade --requirement requirements/cuda.txt
	$(BIN)/pip $(LOCKED) --only-binary :all: --target .venv/deploy --upgrade --requirement requirements/deploy.txt
	$(BIN)/pip $(LOCKED) --only-binary :all: --target .venv/speech --upgrade --requirement requirements/speech.txt
	$(BIN)/pip $(LOCKED) --only-binary :all: --target .venv/similarity --upgrade --requirement requirements/similarity.txt
	$(call install_clients,.venv)
	@touch $@

# Other people's clients and frameworks for agents, for tests/server/test_real_clients.py and test_agents.py, in folders of their
# own: we need nothing of what they bring, and some of it is older than ours.
define install_clients
	$(1)/bin/pip $(LOCKED) $(BUILT) --target $(1)/clients --upgrade --requirement requirements/clients.txt
	$(1)/bin/pip $(LOCKED) $(BUILT) --target $(1)/agents --upgrade --requirement requirements/agents.txt
	mkdir -p $(1)/clients && cp requirements/package.json requirements/package-lock.json $(1)/clients
	npm ci --silent --ignore-scripts --prefix $(1)/clients || echo "npm did not install opus-recorder: its test is skipped" >&2
endef

demo: .venv/demo
	rm -rf demo
	$(BIN)/pplex-export synth demo/checkpoint
	$(BIN)/pplex-export build demo/checkpoint --out demo/bundle
	$(BIN)/pplex-export run demo/bundle --seed 42 --input-wav tests/golden/tiny/checkpoint/voices/synthetic.wav \
		--output-wav demo/agent.wav --output-text demo/agent.json
	@echo "The agent's side is in demo/agent.wav and demo/agent.json (random weights: it babbles)."

# All tests with the Python of $(1). Two files run at a time, but the server's tests talk in real time: they come last, one by one.
# Those of the page wait for a browser most of the time, and may have a neighbour.
define run_tests
	@mkdir -p .cache
	@failed=0; \
	$(1)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore-glob "tests/server/test_*" --junitxml .cache/tests.xml || failed=1; \
	$(1)/python -m pytest tests/server --ignore tests/server/page --junitxml .cache/tests-server.xml || failed=1; \
	$(1)/python tests/skips.py .cache/tests.xml .cache/tests-server.xml; exit $$failed
endef

test: .venv/test
	$(call run_tests,$(BIN))

check: lint
	PPLEX_TEST_BUNDLES=$(CURDIR)/.cache/bundles $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# Made anew each time: pip keeps what is there already, even where something newer exists.
test-newest:
	rm -rf $(NEWEST)
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install --quiet $(TORCH)
	$(NEWEST)/bin/pip install --quiet --editable '.[$(EXTRAS)]'
	$(NEWEST)/bin/pip install --quiet --no-deps --only-binary :all: --target $(NEWEST)/cuda --requirement requirements/cuda.in
	$(NEWEST)/bin/pip install --quiet --only-binary :all: --target $(NEWEST)/deploy --requirement requirements/deploy.in
	$(NEWEST)/bin/pip install --quiet --no-deps --only-binary :all: --target $(NEWEST)/speech --requirement requirements/speech.in
	$(NEWEST)/bin/pip install --quiet --no-deps --only-binary :all: --target $(NEWEST)/similarity --requirement requirements/similarity.in
	$(call install_clients,$(NEWEST))
	$(call run_tests,$(NEWEST)/bin)

# uv resolves for every platform at once, and fetches no package to do so.
LOCK := .cache/lock/bin/uv pip compile --quiet --universal --upgrade --fork-strategy fewest --python-version 3.11 \
	--generate-hashes --no-annotate --custom-compile-command 'make lock'
lock:
	$(PYTHON) -m venv .cache/lock
	.cache/lock/bin/pip install --quiet --upgrade uv
	$(LOCK) --no-emit-package torch --extra export --extra cpu --extra rtx --extra serve --extra scale --extra fleet --extra otel \
		--extra transcribe --extra parakeet --extra similarity --extra validate --extra test pyproject.toml --output-file requirements/test.txt
	$(LOCK) --no-emit-package torch --extra export --extra cpu --extra serve --extra fleet --extra validate \
		--constraints requirements/test.txt pyproject.toml --output-file requirements/demo.txt
	for variant in cpu cuda; do $(LOCK) --extra $$variant --extra serve --extra otel --constraints requirements/test.txt \
		pyproject.toml requirements/image.in --output-file requirements/image-$$variant.txt; done
	$(LOCK) --extra cuda --extra serve --extra scale --extra otel --constraints requirements/test.txt \
		pyproject.toml requirements/image.in --output-file requirements/image-ray.txt
	$(LOCK) --constraints requirements/test.txt requirements/deploy.in --output-file requirements/deploy.txt
	$(LOCK) --no-deps requirements/cuda.in --output-file requirements/cuda.txt
	$(LOCK) --no-deps requirements/speech.in --output-file requirements/speech.txt
	$(LOCK) --no-deps requirements/similarity.in --output-file requirements/similarity.txt
	$(LOCK) $(patsubst %,--no-emit-package %,torch numpy av setuptools) --constraints requirements/test.txt \
		requirements/clients.in --output-file requirements/clients.txt
	$(LOCK) $(patsubst %,--no-emit-package %,torch numpy av setuptools) requirements/agents.in --output-file requirements/agents.txt
	npm install --prefix requirements --package-lock-only --omit-lockfile-registry-resolved

export MYPY_CACHE_DIR := $(CURDIR)/.cache/mypy
# The folders install as pplex.*; a tree of links shows them to mypy and import-linter under that name.
lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf .cache/types && mkdir -p .cache/types/pplex
	for package in $(PACKAGES); do ln -s ../../../$$package .cache/types/pplex/$$package; done
	cd .cache/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml $(PACKAGES:%=-p pplex.%)
	PYTHONPATH=.cache/types $(BIN)/lint-imports --cache-dir .cache/imports
	cd benchmarks && MYPYPATH=../.cache/types:../tests ../$(BIN)/mypy --config-file ../pyproject.toml \
		fleet_run.py gpu.py gpu_pairs.py gpu_probes.py gpu_stand_in.py gpu_wheels.py kernels.py low_bits.py otel_cost.py peers.py protocol_cost.py scale_path.py trained.py trained_damage.py
	cd tests && MYPYPATH=../.cache/types:. ../$(BIN)/mypy --config-file mypy.ini $$(find . -name '*.py' ! -path './server/agents/*')

clean:
	rm -rf .venv $(NEWEST) .cache demo build *.egg-info

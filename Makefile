# make demo   a tiny random model, exported, bundled and spoken to
# make test   every test
# make lint   style and types
PYTHON ?= python3
BIN := .venv/bin
PACKAGES := bench cli engines export runtime server validate

# ONNX Runtime for GPUs is the same module as for the processor, so it gets a folder of its own, with CUDA's headers:
# tests/cuda_stand_in runs it without a GPU.
CUDA := onnxruntime-gpu==1.31.1 nvidia-cuda-runtime==13.5.37 nvidia-cuda-crt==13.5.37

.PHONY: demo test lint clean

# torch first and pinned: any looser request would fetch another build of it.
.venv/demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[export,cpu,serve,validate]'
	@touch $@

.venv/test: .venv/demo
	$(BIN)/pip install --quiet --editable '.[export,cpu,rtx,serve,validate,test]'
	$(BIN)/pip install --quiet --no-deps --only-binary :all: --target .venv/cuda --upgrade $(CUDA) || \
		echo "No onnxruntime-gpu for this machine: the tests of its CUDA provider will be skipped."
	@touch $@

demo: .venv/demo
	rm -rf demo
	$(BIN)/pplex-export synth demo/checkpoint
	$(BIN)/pplex-export build demo/checkpoint --out demo/bundle
	$(BIN)/pplex-export run demo/bundle --seed 42 --input-wav tests/golden/tiny/checkpoint/voices/synthetic.wav \
		--output-wav demo/agent.wav --output-text demo/agent.json
	@echo "The agent's side is in demo/agent.wav and demo/agent.json (random weights: it babbles)."

# The server's tests talk in real time: they have the machine to themselves.
test: .venv/test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/server
	$(BIN)/python -m pytest tests/server

# The folders install as pplex.*; a tree of links shows them to mypy under that name.
lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf .cache/types && mkdir -p .cache/types/pplex
	for package in $(PACKAGES); do ln -s ../../../$$package .cache/types/pplex/$$package; done
	cd .cache/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml $(PACKAGES:%=-p pplex.%)
	cd benchmarks && MYPYPATH=../.cache/types ../$(BIN)/mypy --config-file ../pyproject.toml gpu.py gpu_probes.py gpu_wheels.py

clean:
	rm -rf .venv .cache demo build *.egg-info

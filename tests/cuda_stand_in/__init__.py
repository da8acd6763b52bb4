"""CUDA's libraries without a GPU, for ONNX Runtime's CUDA provider: they record launches and compute nothing.

The provider needs another build of ONNX Runtime than the tests for the processor. It lies in its own folder
(build.FOLDER, filled by `make .venv/test`). Its users run in their own process and create a process.StandIn before
anything else: see launches.py, which tests/runtime/test_ort_cuda.py runs.
"""

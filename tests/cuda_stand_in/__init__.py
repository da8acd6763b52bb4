"""CUDA's libraries without a GPU, for ONNX Runtime's CUDA provider: launches are written down, and nothing is computed.

The provider comes with another build of the module that the processor's tests use. So it lies in a folder of its own
(build.FOLDER, filled by `make .venv/test`), and what uses it is a process of its own, which makes a process.StandIn before
anything else: launches.py, which tests/runtime/test_ort_cuda.py runs.
"""

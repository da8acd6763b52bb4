"""Makes ONNX graphs and a bundle from a checkpoint: called by `cli`, `bench` and `validate`. Needs torch and onnx."""

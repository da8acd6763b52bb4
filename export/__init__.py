"""From a checkpoint to ONNX graphs and a bundle. Needs torch and onnx."""

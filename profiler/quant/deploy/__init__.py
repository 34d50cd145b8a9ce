"""Deployment: the integer model as ONNX, its check, its cost and its picture."""

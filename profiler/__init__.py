"""Quantization accuracy profiler for PyTorch."""

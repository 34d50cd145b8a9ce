"""Small trained networks on real data: healthy ones, and one with planted quantization faults."""

from __future__ import annotations

SAMPLES: dict[str, str] = {
    "mobilenet_v2": "sample_models.mobilenet_v2",
    "multitask": "sample_models.multitask",
    "pitfalls": "sample_models.pitfalls",
    "vit": "sample_models.vit",
    "yolov3": "sample_models.yolov3",
}
"""Name -> module with `load`, `calibration_batches`, `evaluate` and `profile`; import it with `importlib`."""

"""A vision transformer sample: LayerNorm, GELU, softmax and attention in three spellings, on the 32x32 digits.

What LayerNorm and softmax read is int16 (`WIDE`). `python -m sample_models.vit --flow fx` prints the accuracies with
that, and all in int8. The weights in `weights/` are made by `python -m sample_models.train_vit`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sample_models import digits
from sample_models.flows import Sample, main
from sample_models.training import load_weights
from sample_models.vit_network import VisionTransformer

if TYPE_CHECKING:
    from profiler import ProfileReport

NAME = "vit"
WIDE = (
    "add_position",
    *(f"blocks.{i}.{name}" for i in range(len(VisionTransformer.attentions)) for name in ("add1", "add2")),
    "blocks.0.attn.scores",
)
"""Modules whose results LayerNorm and softmax read; the other attentions keep int16 scores by themselves."""


def build() -> nn.Module:
    """The network with fresh weights, in train mode."""
    return VisionTransformer()


def load() -> nn.Module:
    """The trained network in eval mode."""
    return load_weights(build(), NAME)


def calibration_batches() -> list[torch.Tensor]:
    """Ten batches of 32 training images, normalised."""
    return digits.calibration_batches()


def evaluate(model: nn.Module) -> float:
    """Accuracy in percent on the 397 held-out images."""
    return digits.accuracy(model)


def profile(out_dir: str | Path | None = None, **kwargs: Any) -> ProfileReport:
    """Profiles the trained network from float to integers, with the int16 outputs of `WIDE`."""
    from profiler import model_profiler
    from profiler.quant import default_calib_8bit_fake_quant_qconfig, default_calib_16bit_fake_quant_qconfig

    names = dict.fromkeys(WIDE, default_calib_16bit_fake_quant_qconfig)
    qconfig_dict = {"": default_calib_8bit_fake_quant_qconfig, "module_name": names}
    report: ProfileReport = model_profiler(
        load(), calibration_batches(), evaluate=evaluate, out_dir=out_dir, qconfig_dict=qconfig_dict, **kwargs
    )
    return report


def flow_sample(wide: tuple[str, ...] = WIDE) -> Sample:
    """What the flows need to know of the classifier.

    Args:
        wide: modules with int16 results.
    """
    from sample_models.train_vit import train_qat  # the trainer imports this module

    return Sample(
        name=NAME if wide else f"{NAME}_int8",
        metric=f"accuracy in percent on {digits.NUM_TEST} held-out images",
        load=load,
        calibration_batches=calibration_batches,
        evaluate=evaluate,
        train=train_qat,
        outputs=("head",),
        parts=(),
        wide=wide,
    )


if __name__ == "__main__":
    main(flow_sample(), qat_epochs=3)
    main(flow_sample(wide=()), qat_epochs=3)

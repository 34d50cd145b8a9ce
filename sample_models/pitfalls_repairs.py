"""How each fault of the pitfalls sample is repaired in its weights, without changing the float function."""

from __future__ import annotations

from collections.abc import Callable

import torch

StateDict = dict[str, torch.Tensor]

LARGE_FACTOR = 60.0
PIXEL_SCALE = 128.0
_BN_EPS = 1e-5  # nn.BatchNorm2d's default, which the sample keeps


def normalise_input(state: StateDict) -> StateDict:
    """The stem reads (pixels - 128) / 128: its weights grow by 128, its norm's mean loses the offset."""
    new = dict(state)
    new["stem.conv.weight"] = state["stem.conv.weight"] * PIXEL_SCALE
    new["stem.bn.running_mean"] = state["stem.bn.running_mean"] - new["stem.conv.weight"].sum(dim=(1, 2, 3))
    return new


def copy_shared_conv(state: StateDict) -> StateDict:
    """The second branch gets its own copy of the shared convolution."""
    return {**state, "branches.shared_copy.conv.weight": state["branches.shared.conv.weight"].clone()}


def even_out_channels(state: StateDict) -> StateDict:
    """The large channel of `wide` shrinks by its factor, and what `narrow` takes from it grows by the same."""
    new = {key: value.clone() for key, value in state.items()}
    channel = int(state["wide.bn.weight"].abs().argmax())
    new["wide.bn.weight"][channel] /= LARGE_FACTOR
    new["wide.bn.bias"][channel] /= LARGE_FACTOR
    new["narrow.conv.weight"][:, channel] *= LARGE_FACTOR
    return new


def read_norm_output(state: StateDict) -> StateDict:
    """The side branch reads the norm's output: the norm's inverse goes into its 1x1 convolution and own norm."""
    gain = state["split.bn.weight"] / torch.sqrt(state["split.bn.running_var"] + _BN_EPS)
    offset = state["split.bn.bias"] - gain * state["split.bn.running_mean"]
    weight = state["split.side.conv.weight"] / gain[:, None, None]
    shift = torch.einsum("oi,i->o", weight[:, :, 0, 0], offset)
    return {
        **state,
        "split.side.conv.weight": weight,
        "split.side.bn.running_mean": state["split.side.bn.running_mean"] + shift,
    }


REPAIRS: dict[str, Callable[[StateDict], StateDict]] = {
    "raw_input": normalise_input,
    "shared_conv": copy_shared_conv,
    "large_channel": even_out_channels,
    "second_consumer": read_norm_output,
}
"""Fault name -> change of the weights; the other faults are repaired in structure or qconfig alone."""

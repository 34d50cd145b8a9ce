"""Colour of images: RGB to YUV by BT.601 in front of the network, and back inside of a deployed one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from profiler.errors import ConfigError
from profiler.quant.affine import fake_quantize, quantize
from profiler.quant.ops.registry import Family, OpSpec, register
from profiler.quant.qtensor import QTensor, handles

# Rec. ITU-R BT.601-7, section 2.5.1: luma weights of red and blue; those of green complete them to 1.
_RED, _BLUE = 0.299, 0.114
_GREEN = 1.0 - _RED - _BLUE
# Steps of luma and chroma per step of RGB, and where black lies: section 2.5.3 for 8 bits, or all 256 codes.
_SWINGS = {"studio": (219 / 255, 224 / 255, 16.0), "full": (1.0, 1.0, 0.0)}
_CENTRE = 128.0


def _steps(swing: str) -> tuple[float, float, float]:
    if swing not in _SWINGS:
        raise ConfigError(f"swing is {swing!r}; use one of {', '.join(map(repr, _SWINGS))}")
    return _SWINGS[swing]


def _channels(image: Tensor, function: str, order: str) -> tuple[Tensor, Tensor, Tensor]:
    """Red, green and blue (or Y, U and V), each `[..., 1, H, W]`, in float."""
    if image.dim() < 3 or image.shape[-3] != 3:
        raise ConfigError(f"{function} got shape {tuple(image.shape)}; expected [N, 3, H, W] or [3, H, W]")
    image = image if image.is_floating_point() else image.to(torch.float32)
    found = {name: image.narrow(-3, k, 1) for k, name in enumerate(order)}
    return found[order[0]], found[order[1]], found[order[2]]


def _luma(image: Tensor, function: str, swing: str) -> tuple[Tensor, Tensor, Tensor]:
    """Luma in the range of RGB, and red and blue."""
    _steps(swing)
    first, green, last = _channels(image, function, function[:3])
    red, blue = (first, last) if function[0] == "r" else (last, first)
    return red * _RED + green * _GREEN + blue * _BLUE, red, blue


def _to_yuv(image: Tensor, function: str, swing: str, *, is_centred: bool) -> Tensor:
    luma_step, chroma_step, black = _steps(swing)
    luma, red, blue = _luma(image, function, swing)
    u = (blue - luma) * (chroma_step / (2 * (1 - _BLUE)))
    v = (red - luma) * (chroma_step / (2 * (1 - _RED)))
    y = luma * luma_step + (black - _CENTRE)
    yuv = torch.cat([y, u, v], -3)
    return yuv if is_centred else yuv + _CENTRE


def _to_gray(image: Tensor, function: str, swing: str, *, is_centred: bool) -> Tensor:
    luma_step, _, black = _steps(swing)
    return _luma(image, function, swing)[0] * luma_step + (black - _CENTRE if is_centred else black)


def _from_centred_yuv(yuv: Tensor, function: str, swing: str, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """`(rgb - mean) / std` with rgb within 0..255."""
    luma_step, chroma_step, black = _steps(swing)
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, 3):
            raise ConfigError(f"{function}: {name} is {tuple(values)}; expected one number or three")
    y, u, v = _channels(yuv, function, "yuv")
    y = (y + (_CENTRE - black)) * (1 / luma_step)
    red = y + v * (2 * (1 - _RED) / chroma_step)
    blue = y + u * (2 * (1 - _BLUE) / chroma_step)
    green = y - u * (2 * (1 - _BLUE) * _BLUE / _GREEN / chroma_step)
    green = green - v * (2 * (1 - _RED) * _RED / _GREEN / chroma_step)
    image = torch.cat([red, green, blue] if function.endswith("rgb") else [blue, green, red], -3)
    offset, spread = (torch.tensor(list(v)).to(image).reshape(-1, 1, 1) for v in (mean, std))
    return (image.clamp(0.0, 255.0) - offset) / spread


def _forward(name: str, is_centred: bool, convert: Callable[..., Tensor], text: str) -> Callable[..., Tensor]:
    def function(input: Tensor, swing: str = "studio") -> Tensor:
        if has_torch_function_unary(input):  # one op for tracing and measuring
            result: Tensor = handle_torch_function(function, (input,), input, swing=swing)
            return result
        return convert(input, name, swing, is_centred=is_centred)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = text
    return function


def _doc(source: str, target: str, channels: int) -> str:
    return f"""{source} image in 0..255, `[N, 3, H, W]`, to {target}, `[N, {channels}, H, W]`, in float and not rounded.

    Args:
        input: float or integer image; `[3, H, W]` too.
        swing: "studio": Y 16..235, U and V 16..240; "full": all 0..255. Centred: 128 less.

    Raises:
        ConfigError: another swing, or not 3 channels.

    Source:
        Rec. ITU-R BT.601-7, sections 2.5.1 to 2.5.3.
    """


rgb2yuv = _forward("rgb2yuv", False, _to_yuv, _doc("RGB", "YUV", 3))
rgb2centered_yuv = _forward("rgb2centered_yuv", True, _to_yuv, _doc("RGB", "centred YUV", 3))
bgr2yuv = _forward("bgr2yuv", False, _to_yuv, _doc("BGR", "YUV", 3))
bgr2centered_yuv = _forward("bgr2centered_yuv", True, _to_yuv, _doc("BGR", "centred YUV", 3))
rgb2gray = _forward("rgb2gray", False, _to_gray, _doc("RGB", "gray (Y)", 1))
rgb2centered_gray = _forward("rgb2centered_gray", True, _to_gray, _doc("RGB", "centred gray (Y)", 1))
bgr2gray = _forward("bgr2gray", False, _to_gray, _doc("BGR", "gray (Y)", 1))
bgr2centered_gray = _forward("bgr2centered_gray", True, _to_gray, _doc("BGR", "centred gray (Y)", 1))


def rgb2bgr(input: Tensor) -> Tensor:
    """The image with its channels `[N, 3, H, W]` in the other order; quantized values keep their scale."""
    return input.flip(-3)


def bgr2rgb(input: Tensor) -> Tensor:
    """The image with its channels `[N, 3, H, W]` in the other order; quantized values keep their scale."""
    return input.flip(-3)


def centered_yuv2rgb(
    input: Tensor,
    swing: str = "studio",
    mean: Sequence[float] = (128.0,),
    std: Sequence[float] = (128.0,),
    q_scale: float = 1 / 128,
) -> Tensor:
    """Normalised RGB from centred YUV, for a network that was trained on RGB and is deployed behind a YUV camera.

    Stands behind the QuantStub, whose scale is then 1 (the codes are the camera's values, 128 less).

    Args:
        input: centred YUV `[N, 3, H, W]`: a QTensor; a float tensor gives real values that are not rounded.
        swing: "studio" or "full", as in `rgb2yuv`.
        mean: of the normalisation in training, in 0..255; one number or three (in the order of the result).
        std: the same.
        q_scale: scale of the result: that of the QuantStub in training.

    Returns:
        `(rgb - mean) / std` with rgb within 0..255: a QTensor of the input's dtype with the scale q_scale.

    Raises:
        ConfigError: another swing, not 3 channels, or mean and std of another length.

    Source:
        Rec. ITU-R BT.601-7, sections 2.5.1 to 2.5.3, solved for RGB.
    """
    return _back(centered_yuv2rgb, input, swing, mean, std, q_scale)


def centered_yuv2bgr(
    input: Tensor,
    swing: str = "studio",
    mean: Sequence[float] = (128.0,),
    std: Sequence[float] = (128.0,),
    q_scale: float = 1 / 128,
) -> Tensor:
    """As `centered_yuv2rgb`, with the channels blue, green, red."""
    return _back(centered_yuv2bgr, input, swing, mean, std, q_scale)


def _back(function: Any, input: Tensor, swing: str, mean: Any, std: Any, q_scale: float) -> Tensor:
    if has_torch_function_unary(input):
        result: Tensor = handle_torch_function(function, (input,), input, swing, mean, std, q_scale)
        return result
    return _from_centred_yuv(input, function.__name__, swing, mean, std)


@handles("centered_yuv2rgb", "centered_yuv2bgr")
def quantized_from_yuv(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> QTensor:
    """Quantized RGB from quantized YUV: single float32 operations, the same on values and on codes."""
    given = inspect.signature(func).bind(*args, **kwargs)
    given.apply_defaults()
    x, swing, mean, std, q_scale = given.args
    real = _from_centred_yuv(x.dequantize(), func.__name__, swing, mean, std)
    scale = torch.tensor(q_scale, dtype=torch.float32).to(real.device)
    if x.holds_codes:
        return QTensor.wrap(quantize(real, scale, x.info), scale, x.qdtype)
    rounded = fake_quantize(real, scale.reshape(1), x.info) if x.is_rounded else real
    return QTensor.wrap(rounded, scale, x.qdtype, is_rounded=x.is_rounded)


CENTERED_YUV = register(
    OpSpec("centered_yuv", Family.SCALE_KEEPING, functions=("centered_yuv2rgb", "centered_yuv2bgr"),
           note="camera YUV to RGB behind a QuantStub of scale 1; the scale of the result is an argument")
)  # fmt: skip

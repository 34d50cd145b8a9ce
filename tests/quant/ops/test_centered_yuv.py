"""R35: colour of images against BT.601, written from the standard's formula in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import profiler.quant as quant
from profiler.errors import ConfigError
from profiler.quant import (
    DeQuantStub,
    GlobalFakeQuantSwitch,
    QTensor,
    QuantStub,
    bgr2rgb,
    centered_yuv2bgr,
    centered_yuv2rgb,
    check_model,
    compile_model,
    load_compiled,
    rgb2bgr,
    rgb2centered_gray,
    rgb2centered_yuv,
    rgb2gray,
    rgb2yuv,
)
from tests.quant.onnx_check import assert_equals_onnx
from tests.quant.op_forms import codes, on_grid, quantized
from tests.quant.stages import FRONT_ENDS


def image(seed: int = 0) -> Tensor:
    """Random 8-bit RGB `[2, 3, 16, 16]`, with black, white and the pure colours in it."""
    x = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(seed)).float()
    corners = torch.tensor([[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)]).T.float()
    x[0, :, 0, :8] = corners
    return x


def bt601(rgb: np.ndarray, swing: str) -> np.ndarray:
    """YUV of RGB in 0..255: BT.601 gives E'Y and the colour differences of E'R, E'G, E'B in 0..1, then 8-bit codes."""
    red, green, blue = (rgb[:, k].astype(np.float64) / 255 for k in range(3))
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    cr, cb = (red - luma) / 1.402, (blue - luma) / 1.772
    if swing == "studio":
        return np.stack([219 * luma + 16, 224 * cb + 128, 224 * cr + 128], 1)
    return np.stack([255 * luma, 255 * cb + 128, 255 * cr + 128], 1)


@pytest.mark.parametrize("swing", ["studio", "full"])
@pytest.mark.parametrize("source", ["rgb", "bgr"])
def test_r35_rgb_to_yuv_and_gray_equal_the_standard(source: str, swing: str) -> None:
    rgb = image()
    given = rgb if source == "rgb" else rgb2bgr(rgb)
    truth = bt601(rgb.numpy(), swing)
    for name, expected in (
        ("yuv", truth),
        ("centered_yuv", truth - 128),
        ("gray", truth[:, :1]),
        ("centered_gray", truth[:, :1] - 128),
    ):
        result = getattr(quant, f"{source}2{name}")(given, swing=swing)
        np.testing.assert_allclose(result.double().numpy(), expected, rtol=0, atol=1e-4)
        assert torch.equal(getattr(quant, f"{source}2{name}")(given.to(torch.uint8), swing), result)
        assert torch.equal(getattr(quant, f"{source}2{name}")(given[0], swing), result[0])


def test_r35_full_swing_centred_codes_are_within_1_of_the_standard_and_fill_int8() -> None:
    result = torch.round(rgb2centered_yuv(image(), swing="full"))
    codes_ = result.clamp(-128, 127).to(torch.int8).double().numpy()
    expected = bt601(image().numpy(), "full") - 128
    assert np.abs(codes_ - expected).max() <= 1
    assert codes_.min() == -128
    assert codes_.max() == 127


def test_r35_studio_is_the_default_with_its_ranges() -> None:
    yuv = rgb2yuv(image())
    assert torch.equal(yuv, rgb2yuv(image(), swing="studio"))
    assert yuv[:, 0].min() == 16
    assert float(yuv[:, 0].max()) == pytest.approx(235, abs=1e-4)
    assert float(yuv[:, 1:].min()) == pytest.approx(16, abs=1e-4)
    assert float(yuv[:, 1:].max()) == pytest.approx(240, abs=1e-4)
    torch.testing.assert_close(rgb2centered_gray(image()), rgb2gray(image()) - 128, rtol=0, atol=1e-4)


def test_r35_channel_orders_are_each_others_inverse() -> None:
    assert torch.equal(bgr2rgb(rgb2bgr(image())), image())
    assert torch.equal(rgb2bgr(image())[:, 0], image()[:, 2])


@pytest.mark.parametrize("swing", ["studio", "full"])
@pytest.mark.parametrize("back", [centered_yuv2rgb, centered_yuv2bgr])
def test_r35_inverse_round_trip(back: Any, swing: str) -> None:
    rgb = image()
    expected = rgb if back is centered_yuv2rgb else rgb2bgr(rgb)
    yuv = rgb2centered_yuv(rgb, swing=swing)
    real = back(yuv, swing=swing, mean=(0.0,), std=(1.0,))
    torch.testing.assert_close(real, expected, rtol=0, atol=1e-3)
    # through 8-bit codes: half a step of each of Y, U and V, times its weight in the colour
    x_q = torch.round(yuv).clamp(-128, 127).to(torch.int8)
    result = back(quantized(x_q, 1.0), swing=swing)
    assert isinstance(result, QTensor)
    assert result.holds_codes
    assert float(result.scale) == 1 / 128
    assert float((result.plain.float() + 128 - expected).abs().max()) <= (0.5 + 0.5 * 1.772 + 0.5) * 255 / 219


@pytest.mark.parametrize(("mean", "std"), [((128.0,), (128.0,)), ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))])
@pytest.mark.parametrize("swing", ["studio", "full"])
def test_centered_yuv_codes_equal_float64_and_fake_quant(swing: str, mean: Any, std: Any) -> None:
    x_q, q_scale = codes((2, 3, 32, 32)), 1 / 128 if len(mean) == 1 else 0.0207
    given = {"swing": swing, "mean": mean, "std": std, "q_scale": q_scale}
    result: Any = centered_yuv2rgb(quantized(x_q, 1.0), **given)
    fake: Any = centered_yuv2rgb(on_grid(x_q, 1.0), **given)
    assert torch.equal(fake.int_repr(), result.plain)
    luma, chroma, black = (219, 224, 16) if swing == "studio" else (255, 255, 0)
    y, u, v = (x_q[:, k].double().numpy() for k in range(3))
    y, u, v = (y + 128 - black) / luma, u / chroma, v / chroma
    red, blue = y + 1.402 * v, y + 1.772 * u
    green = (y - 0.299 * red - 0.114 * blue) / 0.587
    rgb = 255 * np.clip(np.stack([red, green, blue], 1), 0, 1)
    real = (rgb - np.reshape(mean, (1, -1, 1, 1))) / np.reshape(std, (1, -1, 1, 1))
    expected = np.clip(np.rint(real / np.float32(q_scale)), -128, 127)
    apart = np.abs(result.plain.double().numpy() - expected)
    assert apart.max() <= 1  # ties of float64 that float32 rounds the other way
    assert (apart == 0).mean() > 0.999


def test_centered_yuv_is_not_rounded_while_fake_quant_is_off() -> None:
    x = QTensor.wrap(torch.randn(1, 3, 4, 4) * 50, torch.tensor(1.0), "qint8", is_rounded=False)
    result: Any = centered_yuv2rgb(x)
    assert not result.is_rounded
    torch.testing.assert_close(result.plain, centered_yuv2rgb(x.plain))


class OnRgb(nn.Module):
    """Trained on RGB, normalised by 128."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(scale=1 / 128), DeQuantStub()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def image(self, x: Tensor) -> Any:
        return self.quant((x - 128) / 128)

    def forward(self, x: Tensor) -> Any:
        return self.dequant(self.head(torch.relu(self.conv(self.image(x)))))


class OnYuv(OnRgb):
    """Trained on centred YUV of full swing, made in front of the stub."""

    def image(self, x: Tensor) -> Any:
        return self.quant(rgb2centered_yuv(x, swing="full") / 128)


class Deployed(OnRgb):
    """The RGB network behind a camera that gives centred YUV."""

    def __init__(self) -> None:
        super().__init__()
        self.quant = QuantStub(scale=1.0)

    def image(self, x: Tensor) -> Any:
        return centered_yuv2rgb(self.quant(x), swing="full")


@pytest.mark.parametrize("front", FRONT_ENDS)
@pytest.mark.parametrize("net", [OnYuv, Deployed])
def test_r35_colour_in_every_stage_and_in_the_exported_file(net: type[OnRgb], front: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = net().eval()
    batches = [image(k) if net is OnYuv else torch.round(rgb2centered_yuv(image(k), "full")) for k in range(3)]
    prepare, convert = FRONT_ENDS[front]
    calib = prepare(model, batches)
    converted = convert(calib)
    x = batches[0]
    assert float((calib(x) - model(x)).detach().abs().max()) < 0.05 * float(model(x).detach().abs().max())
    assert float((converted(x) - calib(x)).detach().abs().max()) < 0.02
    assert not [e for e in calib.quant_effects if "float" in e.actual and "yuv" in e.op and net is Deployed]
    assert_equals_onnx(converted, x)
    assert check_model(converted, x) == 0
    assert compile_model(converted, [x], tmp_path / "net.onnx") == 0
    assert torch.equal(load_compiled(tmp_path / "net.onnx")(x), converted(x))


def test_r35_deployed_network_on_yuv_gives_what_it_gave_on_rgb() -> None:
    torch.manual_seed(0)
    trained, deployed = OnRgb().eval(), Deployed().eval()
    deployed.load_state_dict(trained.state_dict())
    prepare, convert = FRONT_ENDS["eager"]
    rgb = [image(k) for k in range(3)]
    on_rgb = prepare(trained, rgb)
    on_yuv = prepare(deployed, [rgb2centered_yuv(x, "full") for x in rgb])
    reference, test = convert(on_rgb)(rgb[0]), convert(on_yuv)(rgb2centered_yuv(rgb[0], "full"))
    error = (test - reference).square().mean().sqrt()
    assert float(error) < 0.03 * float(reference.square().mean().sqrt())


def test_centered_yuv_with_the_global_switch_off_equals_float() -> None:
    model = Deployed().eval()
    x = torch.round(rgb2centered_yuv(image(), "full"))
    calib = FRONT_ENDS["eager"][0](model, [x])
    GlobalFakeQuantSwitch.disable()
    try:
        torch.testing.assert_close(calib(x), model(x), rtol=1e-5, atol=1e-5)
    finally:
        GlobalFakeQuantSwitch.enable()


def test_colour_wrong_arguments_are_told() -> None:
    with pytest.raises(ConfigError, match="swing is 'half'; use one of 'studio', 'full'"):
        rgb2yuv(image(), swing="half")
    with pytest.raises(ConfigError, match=r"rgb2gray got shape \(2, 1, 4, 4\); expected \[N, 3, H, W\]"):
        rgb2gray(torch.zeros(2, 1, 4, 4))
    with pytest.raises(ConfigError, match="mean is"):
        centered_yuv2rgb(image(), mean=(1.0, 2.0))

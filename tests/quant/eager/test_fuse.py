from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiler.errors import PrepareError
from profiler.quant import FloatFunctional, fuse_known_modules, fuse_modules
from profiler.quant.modules import Identity
from profiler.quant.ops.gemm import FusedGemm
from tests.models import ConvBnRelu, WithFunctional, images, make


def norm(cls: Any, channels: int = 4) -> Any:
    module = cls(channels)
    module.running_mean.uniform_(-1, 1)
    module.running_var.uniform_(0.3, 3)
    module.weight.data.uniform_(-2, 2)
    module.bias.data.uniform_(-1, 1)
    return module


BASES: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "Conv2d": (lambda: nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d, (2, 4, 6, 6)),
    "Conv2d_grouped_no_bias": (
        lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False),
        nn.BatchNorm2d,
        (2, 4, 6, 6),
    ),
    "Conv1d": (lambda: nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d, (2, 4, 9)),
    "Conv3d": (lambda: nn.Conv3d(4, 4, 3, padding=1), nn.BatchNorm3d, (2, 4, 4, 5, 3)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 4, 3, padding=1), nn.BatchNorm1d, (2, 4, 9)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 4, 3, padding=1), nn.BatchNorm2d, (2, 4, 6, 6)),
    "ConvTranspose2d_grouped_no_bias": (
        lambda: nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2, bias=False),
        nn.BatchNorm2d,
        (2, 4, 6, 6),
    ),
    "Linear": (lambda: nn.Linear(4, 4), nn.BatchNorm1d, (7, 4)),
}
PATTERNS = [
    ("bn",), ("relu",), ("relu6",), ("add",), ("bn", "relu"),
    ("bn", "add"), ("add", "relu"), ("bn", "add", "relu"), ("bn", "relu6"), ("bn", "add", "relu6"), ("add", "relu6"),
]  # fmt: skip


def group(base: str, pattern: tuple[str, ...]) -> tuple[list[nn.Module], Tensor]:
    make_base, norm_class, shape = BASES[base]
    kinds = {"bn": lambda: norm(norm_class), "relu": nn.ReLU, "relu6": nn.ReLU6, "add": FloatFunctional}
    return [make_base(), *(kinds[p]() for p in pattern)], torch.randn(shape)


def run_float(modules: list[nn.Module], x: Tensor, other: Tensor) -> Tensor:
    y = x
    for module in modules:
        y = module.add(y, other) if isinstance(module, FloatFunctional) else module(y)
    return y


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("pattern", PATTERNS, ids="-".join)
@pytest.mark.parametrize("training", [False, True])
def test_r17_fuse_known_modules_pattern_equals_float_in_eval(
    base: str, pattern: tuple[str, ...], training: bool
) -> None:
    modules, x = group(base, pattern)
    other = torch.randn_like(x)
    with torch.no_grad():
        expected = run_float([m.eval() for m in modules], x, other)
        fused = fuse_known_modules([m.train(training) for m in modules])
        home = pattern.index("add") + 1 if "add" in pattern else 0
        assert isinstance(fused[home], FusedGemm)
        assert all(isinstance(m, Identity) for i, m in enumerate(fused) if i != home)
        result = fused[home].add(x, other) if "add" in pattern else fused[home](x)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_fuse_known_modules_transposed_conv_folds_along_its_output_channels(groups: int) -> None:
    conv, batch_norm = nn.ConvTranspose2d(4, 8, 3, stride=2, groups=groups), norm(nn.BatchNorm2d, 8).eval()
    x = torch.randn(2, 4, 5, 5)
    fused = fuse_known_modules([conv, batch_norm])[0]
    assert fused.weight.shape == conv.weight.shape
    torch.testing.assert_close(fused(x), batch_norm(conv(x)), rtol=1e-5, atol=1e-5)


def test_fuse_known_modules_sync_batch_norm_is_folded() -> None:
    conv, batch_norm = nn.Conv2d(4, 4, 3), norm(nn.SyncBatchNorm).eval()
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(fuse_known_modules([conv, batch_norm])[0](x), batch_norm(conv(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("pattern", "name"), [
    (("bn",), "Conv2d"), (("bn", "relu"), "ConvReLU2d"), (("relu6",), "ConvReLU62d"), (("add",), "ConvAdd2d"),
    (("bn", "add", "relu"), "ConvAddReLU2d"),
])  # fmt: skip
def test_fuse_known_modules_class_name_tells_the_pattern(pattern: tuple[str, ...], name: str) -> None:
    modules, _ = group("Conv2d", pattern)
    fused = next(m for m in fuse_known_modules(modules) if isinstance(m, FusedGemm))
    assert fused._get_name() == name
    assert isinstance(fused, nn.Conv2d)


@pytest.mark.parametrize("training", [False, True])
def test_fuse_modules_old_forward_still_runs(training: bool) -> None:
    block = ConvBnRelu(3, 4)
    norm_like = norm(nn.BatchNorm2d)
    block.normalisation.load_state_dict(norm_like.state_dict())
    x = images()[0]
    expected = block.eval()(x)
    fused = fuse_modules(block.train(training), list(ConvBnRelu.fuse_names)).eval()
    torch.testing.assert_close(fused(x), expected, rtol=1e-5, atol=1e-5)
    assert [type(fused.get_submodule(n)) for n in ConvBnRelu.fuse_names[1:]] == [Identity, Identity]


def test_fuse_modules_copies_unless_inplace() -> None:
    block = ConvBnRelu(3, 4)
    before = {k: v.clone() for k, v in block.state_dict().items()}
    fuse_modules(block, list(ConvBnRelu.fuse_names))
    assert type(block.convolution) is nn.Conv2d
    assert all(torch.equal(v, before[k]) for k, v in block.state_dict().items())
    assert fuse_modules(block, list(ConvBnRelu.fuse_names), inplace=True) is block
    assert isinstance(block.convolution, FusedGemm)


def test_fuse_modules_list_of_lists_fuses_each() -> None:
    model = nn.Sequential(ConvBnRelu(3, 4), ConvBnRelu(4, 4)).eval()
    x = images()[0]
    fused = fuse_modules(model, [[f"{i}.{n}" for n in ConvBnRelu.fuse_names] for i in range(2)])
    torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-5)
    assert sum(isinstance(m, FusedGemm) for m in fused.modules()) == 2


def test_fuse_modules_with_functional_in_a_model_sits_at_the_add() -> None:
    model = make(WithFunctional)
    x = images()[0]
    fused = fuse_modules(model, ["conv", "bn", "ff", "relu"])
    assert isinstance(fused.ff, FusedGemm)
    torch.testing.assert_close(fused.ff.add(x, x), model(x), rtol=1e-5, atol=1e-5)


def test_fuse_known_modules_group_behind_a_fused_relu_is_refused() -> None:
    first = fuse_known_modules([nn.Conv2d(4, 4, 1), nn.ReLU()])[0]
    batch_norm = norm(nn.BatchNorm2d).eval()
    x = torch.randn(2, 4, 5, 5)
    with pytest.raises(PrepareError, match="cannot fuse"):
        fuse_known_modules([first, batch_norm])
    with pytest.raises(PrepareError, match="cannot fuse"):
        fuse_known_modules([first, FloatFunctional()])
    assert float(first(x).min().detach()) == 0


def test_fuse_known_modules_second_step_extends_a_folded_conv() -> None:
    conv, batch_norm = nn.Conv2d(4, 4, 1), norm(nn.BatchNorm2d).eval()
    x = torch.randn(2, 4, 5, 5)
    expected = torch.relu(batch_norm(conv(x)))
    folded = fuse_known_modules([conv, batch_norm])[0]
    torch.testing.assert_close(fuse_known_modules([folded, nn.ReLU()])[0](x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("modules", [
    [nn.Conv2d(1, 1, 1)], [nn.ReLU(), nn.Conv2d(1, 1, 1)], [nn.Conv2d(1, 1, 1), nn.Sigmoid()],
    [nn.Conv2d(1, 1, 1), nn.ReLU(), nn.BatchNorm2d(1)], [nn.Linear(1, 1), nn.BatchNorm2d(1)],
    [nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, track_running_stats=False)],
])  # fmt: skip
def test_fuse_known_modules_unknown_pattern_lists_kinds_and_patterns(modules: list[nn.Module]) -> None:
    with pytest.raises(PrepareError, match=rf"cannot fuse \({type(modules[0]).__name__}.*known patterns: Conv1d"):
        fuse_known_modules(modules)


def test_fuse_modules_missing_path_lists_the_children() -> None:
    with pytest.raises(
        PrepareError, match=r"ConvBnRelu has no module 'conv' to fuse; its children are convolution, norm"
    ):
        fuse_modules(ConvBnRelu(3, 4), ["conv", "normalisation"])


def test_fuse_modules_custom_mapping_is_used() -> None:
    class Merged(nn.Module):
        pass

    mapping = {(nn.Linear, nn.Tanh): lambda is_qat, linear, tanh: Merged()}
    config = {"additional_fuser_method_mapping": mapping}
    fused = fuse_modules(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), ["0", "1"], fuse_custom_config_dict=config)
    assert isinstance(fused[0], Merged)
    assert isinstance(fused[1], Identity)


def test_r17_a1_fuse_known_modules_works_as_torchs_fuser_func() -> None:
    quantization = pytest.importorskip("torch.ao.quantization.fuse_modules")
    block = ConvBnRelu(3, 4).eval()
    x = images()[0]
    expected = block(x)
    for training in (False, True):
        fused = quantization.fuse_modules(
            block.train(training), list(ConvBnRelu.fuse_names), inplace=False, fuser_func=fuse_known_modules
        )
        assert isinstance(fused.convolution, FusedGemm)
        torch.testing.assert_close(fused.eval()(x), expected, rtol=1e-5, atol=1e-5)

"""Small networks of kinds that people have: each with one input batch. None is made for this tool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm as weight_norm_of

Case = tuple[nn.Module, Any]
ODD: dict[str, Callable[[], Case]] = {}


def odd(make: Callable[[], Case]) -> Callable[[], Case]:
    """Register a network under its function's name."""
    ODD[make.__name__] = make
    return make


def images(*shape: int) -> Tensor:
    return torch.randn(*shape)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.Conv2d(16, 8, 3, padding=1)
        self.head = nn.Conv2d(11, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        d = self.down(x)
        m = F.relu(self.middle(F.max_pool2d(d, 2)))
        m = F.interpolate(m, scale_factor=2, mode="nearest")
        u = self.up(torch.cat([m, d], dim=1))
        u = F.interpolate(u, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(torch.cat((u, x), 1))


@odd
def unet() -> Case:
    return UNet(), images(2, 3, 16, 16)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc1, self.fc2 = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))
        return (x * gate).flatten(1)


@odd
def squeeze_excite() -> Case:
    return SqueezeExcite(), images(2, 3, 8, 8)


class LstmClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, (hidden, _) = self.lstm(x)
        return self.fc(out[:, -1] + hidden[0])


@odd
def lstm_classifier() -> Case:
    return LstmClassifier(), images(2, 7, 5)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(self.embed(x)).mean(1))


@odd
def transformer_encoder_layer() -> Case:
    return Transformer(), images(2, 5, 6)


@odd
def depthwise_prelu() -> Case:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.PReLU(6), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.PReLU(),
        nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    return net, images(2, 3, 8, 8)


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return F.cosine_similarity(self.encoder(left), self.encoder(right))


@odd
def siamese() -> Case:
    return Siamese(), (images(2, 1, 8, 8), images(2, 1, 8, 8))


class MultiHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.heads = nn.ModuleDict({"boxes": nn.Conv2d(4, 8, 1), "scores": nn.Conv2d(4, 2, 1)})

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.trunk(x)
        return {"boxes": self.heads["boxes"](x), "extra": {"scores": self.heads["scores"](x).sigmoid()}, "none": None}


@odd
def multi_head_dict() -> Case:
    return MultiHead(), images(2, 3, 6, 6)


class LogSoftmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.max_pool2d(F.relu(self.conv(x)), 2), training=self.training)
        return F.log_softmax(self.fc(x.view(x.size(0), -1)), dim=1)


@odd
def log_softmax() -> Case:
    return LogSoftmax(), images(2, 1, 10, 10)


@odd
def group_norm() -> Case:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(inplace=True), nn.Conv2d(8, 2, 1)), images(
        2, 3, 6, 6
    )


@odd
def audio_conv1d() -> Case:
    net = nn.Sequential(
        nn.Conv1d(1, 6, 9, stride=4), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(6, 6, 3, dilation=2),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip
    return net, images(2, 1, 128)


@odd
def transposed_decoder() -> Case:
    net = nn.Sequential(
        nn.Linear(4, 32), nn.ReLU(), nn.Unflatten(1, (8, 2, 2)), nn.ConvTranspose2d(8, 4, 2, 2), nn.LeakyReLU(0.1),
        nn.ConvTranspose2d(4, 1, 2, 2), nn.Tanh(),
    )  # fmt: skip
    return net, images(3, 4)


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(6, 8), nn.Linear(6, 8)
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.einsum("bic,bjc->bij", self.q(x), self.k(x)) / 8**0.5
        return self.out(scores.softmax(-1))


@odd
def einsum_attention() -> Case:
    return Einsum(), images(2, 5, 6)


class TextClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8, padding_idx=0)
        self.fc = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = (tokens != 0).unsqueeze(-1)
        x = (self.embedding(tokens) * mask).sum(1) / mask.sum(1).clamp(min=1)
        return self.fc(x)


@odd
def text_classifier() -> Case:
    return TextClassifier(), torch.randint(0, 20, (3, 6))


class ConstantAdded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(3, 1, 1))
        self.scale = nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + (self.mean + 1)
        y = self.conv(x) * self.scale
        return y + self.mean.sum()


@odd
def constant_added() -> Case:
    return ConstantAdded(), images(2, 3, 6, 6)


class TrainingBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.auxiliary, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.conv(x))
        if self.training:
            return self.head(x), self.auxiliary(x)
        return self.head(x)


@odd
def training_branch() -> Case:
    return TrainingBranch(), images(2, 3, 6, 6)


class DataBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate = nn.Conv2d(3, 4, 3), Gate()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gate(self.stem(x)).mean((2, 3)))


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 0 else x


@odd
def data_dependent_block() -> Case:
    return DataBranch(), images(2, 3, 6, 6)


class OptionalMask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, double: bool = False) -> Tensor:
        if mask is not None:
            x = x * mask
        return self.fc(x) * 2 if double else self.fc(x)


@odd
def optional_mask() -> Case:
    return OptionalMask(), images(3, 4)


class SplitAndSlice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.left = nn.Conv2d(2, 8, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.conv(x).chunk(2, dim=1)
        first = self.left(first)
        whole = torch.cat(torch.split(first, 2, 1)[::-1] + (second,), 1)  # noqa: RUF005 - adding tuples of tensors is the point
        return whole[:, 1:] + whole[:, :-1] * (x.shape[1] * 2)


@odd
def split_and_slice() -> Case:
    return SplitAndSlice(), images(2, 2, 4, 4)


class MaskInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = self.head(x)
        y += x
        y.mul_(0.5)
        y[:, 0] = 0.25
        return y


@odd
def masked_in_place() -> Case:
    return MaskInPlace(), images(2, 2, 6, 6)


class TrainGivesNothing(nn.Module):
    """An overridden `train` that freezes a part and returns nothing, as in detection libraries."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)


@odd
def train_gives_nothing() -> Case:
    return TrainGivesNothing(), images(2, 2, 6, 6)


@odd
def weight_norm() -> Case:
    return nn.Sequential(weight_norm_of(nn.Conv2d(2, 4, 3)), nn.Conv2d(4, 4, 1)), images(2, 2, 6, 6)


class DictInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.conv(batch.get("image"))


@odd
def dict_input() -> Case:
    return DictInput(), ({"image": images(2, 2, 6, 6)},)


class NumpyNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.fc = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.concatenate((self.left(x), self.right(x)), axis=1)
        return self.fc(both.mean(axis=(2, 3)))


@odd
def numpy_names() -> Case:
    return NumpyNames(), images(2, 2, 6, 6)


class BiasOfTheSameShape(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1)
        self.bias = nn.Parameter(torch.randn(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(x + self.bias.expand_as(x))


@odd
def bias_of_the_same_shape() -> Case:
    return BiasOfTheSameShape(), images(2, 2, 6, 6)

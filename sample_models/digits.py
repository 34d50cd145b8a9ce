"""The data of all samples: scikit-learn's handwritten digits at 32x32, with a fixed held-out split of 397 images."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

NUM_CLASSES = 10
NUM_TRAIN = 1400
NUM_TEST = 397
IMAGE_SIZE = 32
SPLIT_SEED = 0
_LARGEST_VALUE = 16.0  # the data set counts the ink of 4x4 cells


@functools.lru_cache(maxsize=1)
def _arrays() -> tuple[torch.Tensor, torch.Tensor]:
    """All 1797 images `[N, 8, 8]` (0..16) and their labels `[N]`."""
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32), torch.tensor(data.target, dtype=torch.int64)


@functools.lru_cache(maxsize=1)
def split_indices() -> tuple[torch.Tensor, torch.Tensor]:
    """Row numbers of the 1400 training and of the 397 held-out images, each class in its share."""
    labels = _arrays()[1].numpy()
    train, test = train_test_split(range(len(labels)), test_size=NUM_TEST, random_state=SPLIT_SEED, stratify=labels)
    return torch.tensor(train), torch.tensor(test)


def _pixels(rows: torch.Tensor) -> torch.Tensor:
    """Chosen images, upsampled bilinearly, as a camera gives them: whole numbers 0..255."""
    images = _arrays()[0][rows].unsqueeze(1)
    large = F.interpolate(images, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)
    return torch.round(large * (255.0 / _LARGEST_VALUE))


def small_images(is_train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The images as scikit-learn gives them, `[N, 8, 8]` as share of ink (0..1), and labels `[N]`, of one part."""
    rows = split_indices()[0 if is_train else 1]
    images, labels = _arrays()
    return images[rows] / _LARGEST_VALUE, labels[rows]


def train_set() -> tuple[torch.Tensor, torch.Tensor]:
    """Training part: pixels `[1400, 1, 32, 32]` (float32 holding whole numbers 0..255) and labels `[1400]`."""
    rows = split_indices()[0]
    return _pixels(rows), _arrays()[1][rows]


@functools.lru_cache(maxsize=1)
def test_set() -> tuple[torch.Tensor, torch.Tensor]:
    """Held-out part: pixels `[397, 1, 32, 32]` and labels `[397]`; never trained on, never calibrated on."""
    rows = split_indices()[1]
    return _pixels(rows), _arrays()[1][rows]


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels 0..255 as camera input in [-1, 1): whole multiples of 1/128 around 0.

    >>> normalise(torch.tensor([0.0, 128.0, 255.0])).tolist()
    [-1.0, 0.0, 0.9921875]
    """
    return (pixels - 128.0) / 128.0


def calibration_batches(
    preprocess: Callable[[torch.Tensor], torch.Tensor] = normalise, *, num_batches: int = 10, batch_size: int = 32
) -> list[torch.Tensor]:
    """The first images of the training part as `num_batches` batches `[batch_size, 1, 32, 32]`.

    Args:
        preprocess: what the model's user does to pixels 0..255; `normalise`, or the identity for raw pixels.
        num_batches: batches to give.
        batch_size: images in each.
    """
    pixels = train_set()[0][: num_batches * batch_size]
    return list(torch.split(preprocess(pixels), batch_size))


@torch.no_grad()
def accuracy(
    model: Callable[[torch.Tensor], torch.Tensor],
    preprocess: Callable[[torch.Tensor], torch.Tensor] = normalise,
    *,
    batch_size: int = 128,
) -> float:
    """Top-1 accuracy in percent (0..100) on the 397 held-out images.

    Args:
        model: gives logits `[N, 10]` for a batch; put it in eval mode first.
        preprocess: as in `calibration_batches`.
        batch_size: images per forward; the result does not depend on it.
    """
    pixels, labels = test_set()
    logits = torch.cat([model(preprocess(part)) for part in torch.split(pixels, batch_size)])
    return 100.0 * float((logits.argmax(dim=1) == labels).sum()) / len(labels)

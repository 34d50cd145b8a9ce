"""The two data sets of the multi-task sample: a small digit in the middle; a large digit somewhere, among others."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sample_models import digits

CANVAS_SIZE = 64
NUM_TEST = 397
NUM_CLASSES = digits.NUM_CLASSES
NUM_QUADRANTS = 4
_DIGIT_TEST_SEED, _QUADRANT_TEST_SEED = 40_000, 41_000
_DIGIT_CALIBRATION_SEED, _QUADRANT_CALIBRATION_SEED = 50_000, 51_000
_SMALL_SIDES = (16, 19)  # pixels of the pasted 8x8 image: the digit task's digits
_MEDIUM_SIDES = (20, 26)  # the digits around the large one
_LARGE_SIDES = (30, 38)
_MEDIUM_DIGITS = (1, 4)
_JITTER = 2  # pixels that a digit of the digit task may be off the middle
_MARGIN = 3  # pixels that the centre of the large digit stays off the lines between the quadrants


@dataclass(frozen=True)
class Canvases:
    """Canvases and one label for each.

    Attributes:
        pixels: uint8 `[N, 1, 64, 64]`.
        labels: int64 `[N]`.
    """

    pixels: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Network input `[N, 1, 64, 64]` of all or the chosen canvases: whole multiples of 1/128 in [-1, 1)."""
        return digits.normalise((self.pixels if rows is None else self.pixels[rows]).float())


def digit_canvases(num: int, *, seed: int, is_train: bool = True) -> Canvases:
    """Canvases with one small digit in the middle, and which digit it is; the same arguments give the same canvases.

    Args:
        num: number of canvases.
        seed: seed of everything that is random about them.
        is_train: paste the 1400 training digits, or the 397 held-out ones.
    """
    rng = torch.Generator().manual_seed(seed)
    images, labels = digits.small_images(is_train)
    rows = torch.arange(num) % len(images)
    canvases = _backgrounds(num, rng)
    for canvas, row in zip(canvases, rows.tolist(), strict=True):
        centre = [CANVAS_SIZE // 2 + _whole(-_JITTER, _JITTER, rng) for _ in range(2)]
        _paste(canvas, images[row], _whole(*_SMALL_SIDES, rng), centre, rng)
    return Canvases(_as_pixels(canvases, rng), labels[rows])


def quadrant_canvases(num: int, *, seed: int, is_train: bool = True) -> Canvases:
    """Canvases with one large digit among others, and the quadrant that its centre lies in.

    Quadrants are numbered by rows: 0 upper left, 1 upper right, 2 lower left, 3 lower right. The arguments are those
    of `digit_canvases`.
    """
    rng = torch.Generator().manual_seed(seed)
    images, _ = digits.small_images(is_train)
    quadrants = torch.randint(NUM_QUADRANTS, (num,), generator=rng)
    canvases = _backgrounds(num, rng)
    for canvas, quadrant in zip(canvases, quadrants.tolist(), strict=True):
        for _ in range(_whole(*_MEDIUM_DIGITS, rng)):
            side = _whole(*_MEDIUM_SIDES, rng)
            centre = [_whole(side // 2, CANVAS_SIZE - side // 2, rng) for _ in range(2)]
            _paste(canvas, _any_of(images, rng), side, centre, rng)
        side = _whole(*_LARGE_SIDES, rng)
        _paste(canvas, _any_of(images, rng), side, _centre_in(quadrant, side, rng), rng)
    return Canvases(_as_pixels(canvases, rng), quadrants)


@functools.lru_cache(maxsize=1)
def held_out_digits() -> Canvases:
    """The 397 held-out digits, one on each canvas."""
    return digit_canvases(NUM_TEST, seed=_DIGIT_TEST_SEED, is_train=False)


@functools.lru_cache(maxsize=1)
def held_out_quadrants() -> Canvases:
    """397 canvases with held-out digits."""
    return quadrant_canvases(NUM_TEST, seed=_QUADRANT_TEST_SEED, is_train=False)


def digit_batches(num_batches: int = 10, batch_size: int = 32) -> list[torch.Tensor]:
    """Batches `[batch_size, 1, 64, 64]` of the digit task's canvases with training digits, to calibrate with."""
    canvases = digit_canvases(num_batches * batch_size, seed=_DIGIT_CALIBRATION_SEED)
    return list(torch.split(canvases.images(), batch_size))


def quadrant_batches(num_batches: int = 10, batch_size: int = 32) -> list[torch.Tensor]:
    """The same for the quadrant task."""
    canvases = quadrant_canvases(num_batches * batch_size, seed=_QUADRANT_CALIBRATION_SEED)
    return list(torch.split(canvases.images(), batch_size))


def _whole(low: int, high: int, rng: torch.Generator) -> int:
    """A whole number in `[low, high]`."""
    return int(torch.randint(low, high + 1, (), generator=rng))


def _any_of(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    return images[_whole(0, len(images) - 1, rng)]


def _centre_in(quadrant: int, side: int, rng: torch.Generator) -> list[int]:
    """Row and column of the centre of a digit that lies in a quadrant, or as far out as the canvas lets it."""
    highest = CANVAS_SIZE // 2 - _MARGIN
    upper_left = [_whole(min(side // 2, highest), highest, rng) for _ in range(2)]
    is_beyond = (quadrant // 2, quadrant % 2)
    return [CANVAS_SIZE - c if beyond else c for c, beyond in zip(upper_left, is_beyond, strict=True)]


def _backgrounds(num: int, rng: torch.Generator) -> torch.Tensor:
    """Dark canvases `[N, 64, 64]` with blotches."""
    size = (CANVAS_SIZE, CANVAS_SIZE)
    base = 40.0 + 40.0 * torch.rand(num, 1, 1, 1, generator=rng)
    coarse = F.interpolate(torch.randn(num, 1, 4, 4, generator=rng), size=size, mode="bicubic", align_corners=False)
    return (base + 15.0 * coarse).squeeze(1)


def _paste(canvas: torch.Tensor, image: torch.Tensor, side: int, centre: list[int], rng: torch.Generator) -> None:
    """Blends one digit into `canvas` in place, around `centre` (row, column), inside the canvas."""
    ink = F.interpolate(image[None, None], size=(side, side), mode="bilinear", align_corners=False)[0, 0]
    top, left = (min(max(c - side // 2, 0), CANVAS_SIZE - side) for c in centre)
    patch = canvas[top : top + side, left : left + side]
    brightness = 180.0 + 75.0 * float(torch.rand((), generator=rng))
    patch += ink * (brightness - patch)


def _as_pixels(canvases: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Whole numbers 0..255 with a little noise of the sensor, uint8 `[N, 1, 64, 64]`."""
    noisy = canvases + 6.0 * torch.randn(canvases.shape, generator=rng)
    return noisy.round().clamp(0, 255).to(torch.uint8).unsqueeze(1)

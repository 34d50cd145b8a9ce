"""Scenes to detect digits in: scikit-learn's handwritten digits pasted on 96x96 canvases of texture and noise."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sample_models import digits

CANVAS_SIZE = 96
NUM_TEST = 200
NUM_CLASSES = digits.NUM_CLASSES
_TEST_SEED = 20_000
_CALIBRATION_SEED = 30_000
_MIN_SIDE, _MAX_SIDE = 16, 52  # pixels of the pasted 8x8 image
_MIN_DIGITS, _MAX_DIGITS = 2, 6
_MAX_OVERLAP = 0.05  # share of the smaller box
_INK = 0.35  # share of ink from which a pixel belongs to the digit
_TRIES = 12


@dataclass(frozen=True)
class Scenes:
    """Canvases and what is on them.

    Attributes:
        pixels: uint8 `[N, 1, 96, 96]`.
        boxes: per canvas float32 `[M, 4]`, x0 y0 x1 y1 in pixels: the tight box of the digit's ink.
        labels: per canvas int64 `[M]`.
    """

    pixels: torch.Tensor
    boxes: list[torch.Tensor]
    labels: list[torch.Tensor]

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Network input `[N, 1, 96, 96]` of all or the chosen canvases: whole multiples of 1/128 in [-1, 1)."""
        return digits.normalise((self.pixels if rows is None else self.pixels[rows]).float())


def make_scenes(num: int, *, seed: int, is_train: bool = True) -> Scenes:
    """Draws canvases; the same arguments give the same canvases.

    Args:
        num: number of canvases.
        seed: seed of everything that is random about them.
        is_train: paste the 1400 training digits, or the 397 held-out ones.
    """
    rng = torch.Generator().manual_seed(seed)
    images, labels = digits.small_images(is_train)
    canvases, all_boxes, all_labels = [], [], []
    for background in _backgrounds(num, rng):
        boxes, rows = _paste_digits(background, images, rng)
        canvases.append(background)
        all_boxes.append(boxes)
        all_labels.append(labels[rows])
    pixels = torch.stack(canvases) + 8.0 * torch.randn(num, CANVAS_SIZE, CANVAS_SIZE, generator=rng)
    return Scenes(pixels.round().clamp(0, 255).to(torch.uint8).unsqueeze(1), all_boxes, all_labels)


@functools.lru_cache(maxsize=1)
def held_out_scenes() -> Scenes:
    """The 200 held-out canvases: other digits than those trained on."""
    return make_scenes(NUM_TEST, seed=_TEST_SEED, is_train=False)


def calibration_batches(num_batches: int = 10, batch_size: int = 16) -> list[torch.Tensor]:
    """Batches `[batch_size, 1, 96, 96]` of network input with training digits."""
    scenes = make_scenes(num_batches * batch_size, seed=_CALIBRATION_SEED)
    return list(torch.split(scenes.images(), batch_size))


def _uniform(low: float, high: float, rng: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))


def _backgrounds(num: int, rng: torch.Generator) -> torch.Tensor:
    """Dark canvases `[N, 96, 96]` with blotches of two sizes."""
    size = (CANVAS_SIZE, CANVAS_SIZE)
    base = 40.0 + 50.0 * torch.rand(num, 1, 1, 1, generator=rng)
    coarse = F.interpolate(torch.randn(num, 1, 4, 4, generator=rng), size=size, mode="bicubic", align_corners=False)
    fine = F.interpolate(torch.randn(num, 1, 16, 16, generator=rng), size=size, mode="bilinear", align_corners=False)
    return (base + 18.0 * coarse + 14.0 * fine).squeeze(1)


def _paste_digits(canvas: torch.Tensor, images: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, list[int]]:
    """Blends digits into `canvas` in place; gives their boxes `[M, 4]` and their rows in `images`."""
    boxes: list[torch.Tensor] = []
    rows: list[int] = []
    wanted = int(torch.randint(_MIN_DIGITS, _MAX_DIGITS + 1, (), generator=rng))
    for _ in range(_TRIES):
        if len(boxes) == wanted:
            break
        row = int(torch.randint(len(images), (), generator=rng))
        ink, box = _place_digit(images[row], rng)
        if all(_overlap(box, other) <= _MAX_OVERLAP for other in boxes):
            brightness = _uniform(160.0, 255.0, rng)
            canvas += ink * (brightness - canvas)
            boxes.append(box)
            rows.append(row)
    return torch.stack(boxes), rows


def _place_digit(image: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One digit at a random size and place: its ink `[96, 96]` (0..1) and its box `[4]`."""
    side = int(_MIN_SIDE * (_MAX_SIDE / _MIN_SIDE) ** _uniform(0.0, 1.0, rng))
    height = max(_MIN_SIDE, int(side * _uniform(0.85, 1.15, rng)))
    large = F.interpolate(image[None, None], size=(height, side), mode="bilinear", align_corners=False)[0, 0]
    top = int(torch.randint(CANVAS_SIZE - height + 1, (), generator=rng))
    left = int(torch.randint(CANVAS_SIZE - side + 1, (), generator=rng))
    ink = torch.zeros(CANVAS_SIZE, CANVAS_SIZE)
    ink[top : top + height, left : left + side] = large
    rows, columns = torch.nonzero(ink >= _INK, as_tuple=True)
    box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
    return ink, box


def _overlap(box: torch.Tensor, other: torch.Tensor) -> float:
    """Shared area over the smaller box's area, 0..1."""
    sides = (torch.minimum(box[2:], other[2:]) - torch.maximum(box[:2], other[:2])).clamp(min=0)
    smaller = min(float((b[2:] - b[:2]).prod()) for b in (box, other))
    return float(sides.prod()) / smaller

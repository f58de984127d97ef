"""Held-out prompts drawn in batches, the share of correct pictures, and contact sheets. Needs no MLX and no PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from precision_lab.lab.folder import to_uint8
from precision_lab.shapes import SCORED, Scene, held_out_scenes, verdict

Draw = Callable[[Sequence[str], Sequence[int]], np.ndarray]
"""Captions and the seeds of their noise to pixels (n, height, width, 3 or 4) in 0 to 255, unrounded and unclipped."""

CHECK = 8
"""Side in pixels of the squares that show through transparent pixels."""


def held_out(count: int, transparent: bool = False) -> list[Scene]:
    """A seeded sample, without repetition, of the scenes whose combination is not in the training data."""
    scenes = held_out_scenes(transparent=transparent)
    return [scenes[i] for i in np.random.default_rng(0).permutation(len(scenes))[:count]]


def drawn(scenes: Sequence[Scene], draw: Draw, batch: int) -> tuple[list[np.ndarray], int]:
    """A picture of each scene, whose seed is its place in the list, and the number of non-finite values in all."""
    images: list[np.ndarray] = []
    broken = 0
    for start in range(0, len(scenes), batch):
        part = scenes[start : start + batch]
        pictures, nonfinite = rounded(draw([scene.caption for scene in part], range(start, start + len(part))))
        images.extend(pictures)
        broken += nonfinite
    return images, broken


def rounded(pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """uint8 pictures of pixels that may leave 0 to 255, and the number of non-finite values, which become 0."""
    return to_uint8(np.where(np.isfinite(pixels), np.clip(pixels, 0, 255), np.nan))


def shares(scenes: Sequence[Scene], images: Sequence[np.ndarray]) -> dict[str, object]:
    """The share of pictures that are correct, and the share with the right value of each attribute."""
    verdicts = [verdict(scene, image) for scene, image in zip(scenes, images, strict=True)]
    return {
        "correct": float(np.mean([all(right[name] for name in SCORED) for right in verdicts])),
        "attributes": {name: float(np.mean([right[name] for right in verdicts])) for name in verdicts[0]},
    }


def contact_sheet(images: Sequence[np.ndarray], columns: int = 8) -> Image.Image:
    """A contact sheet of all full rows of the pictures; a single row may be short.

    Pictures with an alpha channel are composited over grey squares.
    """
    columns = min(columns, len(images))
    shown = [opaque(image) for image in images]
    rows = [np.concatenate(shown[i : i + columns], 1) for i in range(0, len(shown) - columns + 1, columns)]
    return Image.fromarray(np.concatenate(rows))


def opaque(image: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8 of a picture with or without alpha, over grey squares."""
    if image.shape[2] == 3:
        return image
    row, column = np.indices(image.shape[:2]) // CHECK
    squares = np.where((row + column) % 2 == 0, 150, 110)[..., None]
    alpha = image[..., 3:] / 255
    return np.rint(image[..., :3] * alpha + squares * (1 - alpha)).astype(np.uint8)

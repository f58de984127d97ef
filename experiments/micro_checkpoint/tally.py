"""The share of correct pictures, and contact sheets. Needs neither MLX nor PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from precision_lab.shapes import SCORED, Scene, verdict

CHECK = 8
"""Side in pixels of the squares that show through transparent pixels."""


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

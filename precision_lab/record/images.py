"""The pictures of a run: 8-bit RGB or RGBA as PNG, one for each variant, prompt and seed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from precision_lab.errors import InputError, first_line
from precision_lab.record.files import RESTORE

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngImageFile

FOLDER = "images"
NUM_NONFINITE = "num_nonfinite"
"""Key of the text in a PNG that counts the values that were not finite."""

_MOST_PIXELS = 1 << 28


def picture_path(run: Path, variant: str, prompt_id: int, seed: int) -> Path:
    """The picture of one generation."""
    return run / FOLDER / f"{variant}__p{prompt_id}__s{seed}.png"


def read_image(path: Path) -> tuple[npt.NDArray[np.uint8], int]:
    """The pixels (height, width, 3 or 4) of a picture of a run, and how many of their values were not finite.

    Raises InputError for a file that cannot be read, or is not such a picture.
    """
    with _opened(path) as image:
        num_nonfinite = _count(image, path)
        return np.asarray(image), num_nonfinite


def verify(path: Path) -> tuple[int, int]:
    """Width and height. Raises InputError for a file that is no picture of a run; checksums are compared."""
    with _opened(path) as image:
        _count(image, path)
        image.verify()
        return image.size


@contextmanager
def _opened(path: Path) -> Iterator[PngImageFile]:
    from PIL import Image

    try:
        if not path.is_file():
            raise InputError(f"{path} is not a file, expected a picture. {RESTORE}")
        with warnings.catch_warnings(action="error"), Image.open(path, formats=["PNG"]) as image:
            if image.mode not in ("RGB", "RGBA") or image.width * image.height > _MOST_PIXELS:
                what = f"{image.width} x {image.height} pixels of mode {image.mode}"
                raise InputError(f"{path} has {what}, expected 8-bit RGB or RGBA. {RESTORE}")
            yield image  # type: ignore[misc]
    except InputError:
        raise
    except Exception as error:  # of a damaged file, Pillow raises whatever the bytes lead to
        reason = first_line(error).removesuffix(f" {str(path)!r}")
        raise InputError(f"{path} is not a picture that can be read: {reason}. {RESTORE}") from error


def _count(image: PngImageFile, path: Path) -> int:
    text = str(image.info.get(NUM_NONFINITE, "0"))
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise InputError(f"{path} says {NUM_NONFINITE} is {text[:40]!r}, expected a count. {RESTORE}")
    return int(text)

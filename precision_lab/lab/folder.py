"""The folder of a run: its creation, the checks before it, and the images in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from precision_lab.errors import InputError
from precision_lab.record import manifest
from precision_lab.record.files import write_atomically
from precision_lab.record.manifest import Manifest


@dataclass(frozen=True)
class Identity:
    """The properties that must not change when a run is resumed."""

    checkpoint: str
    device: str
    mlx: str | None


def prepare(out: Path, resume: bool, resolved: str, identity: Identity) -> None:
    """Creates the run folder. Raises InputError if it already holds a run or cannot be written.

    With `resume`, the folder must hold an unfinished run with the same configuration and identity.
    """
    holds_run = (out / manifest.FILE).is_file()
    if resume and not holds_run:
        raise InputError(f"resume=true: {out} holds no run. Give out=DIR of an interrupted one")
    if holds_run:
        if not resume:
            raise InputError(f"out={out} already holds a run. Give another folder, or resume=true to continue it")
        _check_resumed(out, resolved, identity)
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"out={out} cannot be written: {error.strerror}") from error


def _check_resumed(out: Path, resolved: str, identity: Identity) -> None:
    begun = Manifest.read(out)
    if begun.status == "complete":
        raise InputError(f"resume=true: the run in {out} is complete; `report run={out}` draws its report")
    config = out / "config.yaml"
    if config.is_file() and config.read_text() != resolved:
        raise InputError(f"resume=true: {config} differs from this configuration. Give the overrides of that run")
    then = Identity(begun.checkpoint.fingerprint, begun.environment.device, begun.environment.mlx)
    for name, value in vars(identity).items():
        before = getattr(then, name)
        if before != value:
            raise InputError(f"resume=true: {out} was begun with another {name}: {before}, now {value}")


def save_image(path: Path, pixels: np.ndarray) -> None:
    """Writes pixel values in [0, 255] as an 8-bit PNG; its text `num_nonfinite` counts non-finite ones, drawn as 0."""
    from PIL import Image, PngImagePlugin

    path.parent.mkdir(parents=True, exist_ok=True)
    image, num_nonfinite = to_uint8(pixels)
    about = PngImagePlugin.PngInfo()
    about.add_text("num_nonfinite", str(num_nonfinite))
    write_atomically(path, lambda temporary: Image.fromarray(image).save(temporary, "PNG", pnginfo=about))


def to_uint8(pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """The rounded 8-bit image of pixel values in [0, 255], and the number of non-finite values, which become 0."""
    finite = np.isfinite(pixels)
    rounded = np.where(finite, pixels, 0).round().astype(np.uint8)
    return rounded, int(pixels.size - np.count_nonzero(finite))

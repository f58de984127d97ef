"""The folder of a run: its creation, the checks before it, its lock, and the images in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from precision_lab.errors import InputError
from precision_lab.record import manifest
from precision_lab.record.files import RESTORE, File, advising, read_text
from precision_lab.record.folders import check_name, writable
from precision_lab.record.images import NUM_NONFINITE
from precision_lab.record.lock import FolderLock, check_free
from precision_lab.record.manifest import Manifest
from precision_lab.record.run import CONFIG


class FolderError(InputError):
    """A run cannot have its folder, and has not begun."""


@dataclass(frozen=True)
class Identity:
    """The properties that must not change when a run is resumed."""

    checkpoint: str
    device: str
    mlx: str | None


@contextmanager
def occupied(lock: FolderLock, resume: bool, resolved: str, identity: Identity) -> Iterator[None]:
    """Context manager in which this process is the only one to write into the run folder of `lock`; creates the folder.

    Raises FolderError if the folder already holds a run, another process writes into it, or it cannot be written. With
    `resume`, it must hold an unfinished run with the same configuration and identity. A folder that is still empty at
    the end is removed, with those created above it.
    """
    out = lock.folder
    check_name(out)
    created: list[Path] = []
    try:
        with _of_folder(), writable(out):
            check_free(out)
            _check(out, resume, resolved, identity)  # before anything is created
            for folder in reversed([folder for folder in (out, *out.parents) if not folder.exists()]):
                folder.mkdir(exist_ok=True)
                created.append(folder)
            lock.acquire()
            _check(out, resume, resolved, identity)  # again: another run may have begun or ended meanwhile
            if resume:
                for left in (*out.glob("*.tmp"), *out.glob("*/*.tmp")):  # by the run when it was killed
                    left.unlink()
        yield
    finally:
        lock.release()
        for folder in reversed(created):
            with suppress(OSError):  # not empty, or below `..`
                folder.rmdir()


@contextmanager
def _of_folder() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise FolderError(str(error)) from error


def _check(out: Path, resume: bool, resolved: str, identity: Identity) -> None:
    holds_run = (out / manifest.FILE).exists()
    if resume and not holds_run:
        raise InputError(f"resume=true: {out} holds no run. Give out=DIR of an interrupted one")
    if holds_run and not resume:
        raise InputError(f"out={out} already holds a run. Give another folder, or resume=true to continue it")
    if holds_run:
        _check_resumed(out, resolved, identity)


def _check_resumed(out: Path, resolved: str, identity: Identity) -> None:
    begun = Manifest.read(out)
    if begun.status == "complete":
        raise InputError(f"resume=true: the run in {out} is complete; `report run={out}` draws its report")
    config = out / CONFIG
    with advising(RESTORE):
        stored = read_text(config)
    if stored != resolved:
        raise InputError(f"resume=true: {config} differs from this configuration. Give the overrides of that run")
    then = Identity(begun.checkpoint.fingerprint, begun.environment.device, begun.environment.mlx)
    for name, value in vars(identity).items():
        before = getattr(then, name)
        if before != value:
            raise InputError(f"resume=true: {out} was begun with another {name}: {before}, now {value}")


def image_file(path: Path, pixels: np.ndarray) -> File:
    """Pixel values in [0, 255] as an 8-bit PNG; its text `num_nonfinite` counts non-finite ones, drawn as 0."""
    from PIL import Image, PngImagePlugin

    image, num_nonfinite = to_uint8(pixels)
    about = PngImagePlugin.PngInfo()
    about.add_text(NUM_NONFINITE, str(num_nonfinite))
    content = BytesIO()
    Image.fromarray(image).save(content, "PNG", pnginfo=about)
    return File(path.as_posix(), content.getvalue())


def save_image(path: Path, pixels: np.ndarray) -> None:
    """Writes an `image_file`, whole or not at all."""
    image_file(Path(path.name), pixels).write(path.parent)


def to_uint8(pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """The rounded 8-bit image of pixel values in [0, 255], and the number of non-finite values, which become 0."""
    finite = np.isfinite(pixels)
    rounded = np.where(finite, pixels, 0).round().astype(np.uint8)
    return rounded, int(pixels.size - np.count_nonzero(finite))

"""The folder of a run: made or refused, and what is written into it besides tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from precision_lab.errors import InputError
from precision_lab.model.qwen_image.pipeline import to_uint8
from precision_lab.model.weights import read_json


def prepare(out: Path, resume: bool, resolved: str, identity: Mapping[str, Any]) -> None:
    """Makes the run folder. Raises InputError if it holds another run, one made elsewhere, or cannot be written."""
    path = out / "manifest.json"
    if resume and not path.is_file():
        raise InputError(f"resume=true: {out} holds no run. Give out=DIR of an interrupted one")
    if path.is_file():
        if not resume:
            raise InputError(f"out={out} already holds a run. Give another folder, or resume=true to continue it")
        manifest = read_json(path)
        if manifest.get("status") == "complete":
            raise InputError(f"resume=true: the run in {out} is complete; `report run={out}` draws its report")
        config = out / "config.yaml"
        if config.is_file() and config.read_text() != resolved:
            raise InputError(f"resume=true: {config} differs from this configuration. Give the overrides of that run")
        made = manifest.get("environment", {})
        then = {"checkpoint": manifest.get("checkpoint", {}).get("fingerprint"), **made}
        for key, value in identity.items():
            if then.get(key) != value:
                raise InputError(f"resume=true: {out} was begun with another {key}: {then.get(key)}, now {value}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"out={out} cannot be written: {error.strerror}") from error


def save_image(path: Path, pixels: np.ndarray) -> None:
    """An 8-bit PNG of pixel values in [0, 255]; non-finite ones are 0 and counted in its text `num_nonfinite`."""
    from PIL import Image, PngImagePlugin

    path.parent.mkdir(parents=True, exist_ok=True)
    image, num_nonfinite = to_uint8(pixels)
    about = PngImagePlugin.PngInfo()
    about.add_text("num_nonfinite", str(num_nonfinite))
    Image.fromarray(image).save(path, pnginfo=about)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Strict JSON, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    temporary.replace(path)

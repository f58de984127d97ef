"""The final results of a run as numbers, so that runs can be compared after their models are gone.

`results/<variant>__p<prompt_id>__s<seed>.safetensors` holds the array that the last step of a generation left, such as
its latents, as the tensor `result` in fp32, which is exact for 16-bit dtypes. Of Qwen-Image it is 1 MB at 1024 x 1024.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from precision_lab.errors import InputError, first_line
from precision_lab.record.files import File

FOLDER = "results"
LARGEST = 4 << 20
"""Bytes of the largest result that is stored: that of Qwen-Image at 2048 x 2048."""

_KEY = "result"
_HEADER = 1 << 10


def path_of(run: Path, variant: str, prompt_id: int, seed: int) -> Path:
    """Where the result of a generation is stored."""
    return run / FOLDER / f"{variant}__p{prompt_id}__s{seed}.safetensors"


def files_of(path: Path, result: npt.NDArray[np.generic]) -> list[File]:
    """The file of a final result at `path` in its run folder; none for a result larger than `LARGEST`."""
    if 4 * result.size > LARGEST:
        return []
    with np.errstate(invalid="ignore"):  # a cast of a signalling NaN
        return [File(path.as_posix(), save({_KEY: np.ascontiguousarray(result, dtype=np.float32)}))]


def write(path: Path, result: npt.NDArray[np.generic]) -> None:
    """Writes a final result, whole or not at all. One larger than `LARGEST` is left out."""
    for file in files_of(Path(path.name), result):
        file.write(path.parent)


def read(path: Path) -> npt.NDArray[np.float32] | None:
    """A stored result; None if there is none. Raises InputError for a file that `write` did not leave."""
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > LARGEST + _HEADER:
            raise InputError(f"{path} is larger than a stored result can be. Remove it, or run again")
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}. Remove it, or run again") from error
    result = tensors.get(_KEY)
    if result is None or result.dtype != np.float32:
        raise InputError(f"{path} holds no fp32 tensor {_KEY!r}. Remove it, or run again")
    return result

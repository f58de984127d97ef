"""The state of a training stage between slices, in safetensors, and its transfer between hosts in pieces."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

PIECE_BYTES = 15 << 20

MOMENTS = ("exp_avg.", "exp_avg_sq.")
"""Prefixes of the names of the optimiser's moments."""

State = tuple[dict[str, torch.Tensor], dict[str, float]]
"""Tensors, and numbers such as the step."""


def save(path: Path, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, float]) -> None:
    """Writes a state atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, new, {"numbers": json.dumps(dict(numbers))})
    os.replace(new, path)


def load(path: Path) -> State | None:
    """The state that `save` wrote, or None for a stage that has not begun."""
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        names = file.keys()  # the file itself cannot be iterated
        return {name: file.get_tensor(name) for name in names}, json.loads(file.metadata()["numbers"])


def split(path: Path, folder: Path) -> list[Path]:
    """Splits a file into `folder`/<name>.000, .001, ... of at most 15 MiB each; deletes older pieces of that name."""
    folder.mkdir(parents=True, exist_ok=True)
    for former in _pieces(folder, path.name):
        former.unlink()
    content = path.read_bytes()
    pieces = []
    for i, start in enumerate(range(0, len(content), PIECE_BYTES)):
        piece = folder / f"{path.name}.{i:03d}"
        piece.write_bytes(content[start : start + PIECE_BYTES])
        pieces.append(piece)
    return pieces


def join(folder: Path, path: Path) -> None:
    """The inverse of `split`. Raises FileNotFoundError if there are no pieces, or one between others is missing."""
    pieces = _pieces(folder, path.name)
    expected = [f"{path.name}.{i:03d}" for i in range(max(1, len(pieces)))]
    if [piece.name for piece in pieces] != expected:
        raise FileNotFoundError(f"{folder}: expected pieces {expected[0]} to {expected[-1]}, found {len(pieces)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    os.replace(new, path)


def _pieces(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"{name}.[0-9][0-9][0-9]"))


class Clock:
    """The time limit of a slice."""

    def __init__(self, minutes: float):
        self._end = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Remaining seconds."""
        return self._end - time.monotonic()

    @property
    def over(self) -> bool:
        return self.left <= 0


class Log:
    """A log with one JSON object per line; a resumed stage appends to the same file.

    After a killed slice, the next one writes the same steps again: the last line of a step counts.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def __call__(self, **values: float | list[float]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def replayed(step: Callable[[], torch.Tensor], device: str) -> Callable[[], torch.Tensor]:
    """`step`, which reads and writes only fixed tensors. On a GPU, it is captured once as a CUDA graph and replayed.

    PyTorch requires three warm-up steps before a capture; they are ordinary training steps.
    """
    if device == "cpu":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return result

    return replay

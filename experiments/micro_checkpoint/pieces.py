"""Moves a file of training between hosts in pieces of at most 15 MiB.

    python -m experiments.micro_checkpoint.pieces split WORK/transformer.safetensors FOLDER
    python -m experiments.micro_checkpoint.pieces join FOLDER WORK/transformer.safetensors
    python -m experiments.micro_checkpoint.pieces weights WORK/transformer.safetensors FOLDER

`weights` splits the state without the optimiser's moments, which is smaller; training continues with new moments.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from experiments.micro_checkpoint import state


def weights(source: Path, folder: Path) -> None:
    """Splits a state without its moments."""
    saved = state.load(source)
    if saved is None:
        raise SystemExit(f"{source}: no such state")
    tensors, numbers = saved
    with tempfile.TemporaryDirectory() as temporary:
        reduced = Path(temporary) / source.name
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(state.MOMENTS)}
        state.save(reduced, kept, numbers)
        state.split(reduced, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=("split", "join", "weights"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    {"split": state.split, "join": state.join, "weights": weights}[options.verb](options.source, options.target)


if __name__ == "__main__":
    main()

"""Checkpoints with layers made fragile at random places; the function of the model stays the same.

Multiplying the rows of the value projections of a block by a power of two, and dividing the columns of its output
projections by it, changes nothing in exact arithmetic: softmax weights average the values of each channel.
"""

import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np

VALUES, OUTPUTS = ("attn.to_v", "attn.add_v_proj"), ("attn.to_out.0", "attn.to_add_out")


def planted(checkpoint: Path, folder: Path, blocks, channels, factor: float) -> Path:
    """A copy of a checkpoint in which some channels of the values of `blocks` are multiplied by `factor`."""
    shutil.copytree(checkpoint, folder)
    [file] = (folder / "transformer").glob("*.safetensors")
    tensors, metadata = mx.load(str(file), return_metadata=True)
    scale = np.ones(tensors[f"transformer_blocks.0.{VALUES[0]}.weight"].shape[0], np.float32)
    scale[channels] = factor
    scale = mx.array(scale)
    for block in blocks:
        for name in VALUES:
            for kind, by in (("weight", scale[:, None]), ("bias", scale)):
                key = f"transformer_blocks.{block}.{name}.{kind}"
                tensors[key] = (tensors[key].astype(mx.float32) * by).astype(tensors[key].dtype)
        for name in OUTPUTS:
            key = f"transformer_blocks.{block}.{name}.weight"
            tensors[key] = (tensors[key].astype(mx.float32) / scale).astype(tensors[key].dtype)
    mx.save_safetensors(str(file), tensors, metadata)
    return folder


def fragile(blocks, names, last: int):
    """The groups that are fragile then. What the last block does to the text stream does not reach the output."""
    return {f"transformer_blocks.{b}.{name}" for b in blocks for name in names if (b, name) != (last, OUTPUTS[1])}

"""One forward pass of a transformer larger than memory, compared with only reading and only computing.

    python -m experiments.benchmarks.streaming --folder DIR                       # 60 blocks, 41 GB
    python -m experiments.benchmarks.streaming --folder DIR --blocks 6 --check    # 4 GB, also the resident model
    python -m experiments.benchmarks.streaming --folder DIR --fast                # with technique=fast, on a CPU

Writes a synthetic checkpoint of full width to DIR if there is none, and keeps it. Then it runs each arm in its own
process. Peak resident memory is reported by the operating system and includes Python, MLX and activations:

- read: every tensor of the transformer evaluated and dropped, block by block, and nothing else;
- compute: one block in memory, called as often as there are blocks;
- streamed: the forward pass with `stream=True`;
- resident (--check): the same with all weights already in memory; outputs must be identical bit for bit.

Before each arm, files are dropped from the page cache (on Linux); files larger than memory are also dropped while they
are read. Target: streamed takes at most 1.2 max(read, compute), and 6 GB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from precision_lab.device import allocator, blas, page_cache

allocator.keep_freed()
blas.preload()  # before MLX is imported

import mlx.core as mx  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402

from precision_lab.device.environment import device_name, set_numeric_switches  # noqa: E402
from precision_lab.model import weights  # noqa: E402
from precision_lab.model.qwen_image.checkpoint import Checkpoint  # noqa: E402
from precision_lab.model.qwen_image.streams import Streams  # noqa: E402
from precision_lab.model.qwen_image.transformer import Transformer  # noqa: E402
from precision_lab.model.rotary import Grid  # noqa: E402
from precision_lab.synthetic import PRESETS, make  # noqa: E402
from precision_lab.techniques.base import applied  # noqa: E402
from precision_lab.techniques.fast.cpu import FastCPU  # noqa: E402

PIXELS_PER_TOKEN = 16
TEXT_TOKENS = 64


class Inputs:
    """Seeded arguments of one forward pass at `pixels` a side, bf16."""

    def __init__(self, checkpoint: Checkpoint, pixels: int):
        config, rng = checkpoint.transformer_config(), np.random.default_rng(0)
        side = pixels // PIXELS_PER_TOKEN

        def normal(*shape: int) -> mx.array:
            return mx.array(rng.standard_normal(shape, dtype=np.float32)).astype(mx.bfloat16)

        self.grid = Grid(side, side)
        self.latents, self.text = (
            normal(1, side * side, config.in_channels),
            normal(1, TEXT_TOKENS, config.joint_attention_dim),
        )
        self.img, self.txt = normal(1, side * side, config.dim), normal(1, TEXT_TOKENS, config.dim)
        self.temb = normal(1, config.dim)
        mx.eval(self.latents, self.text, self.img, self.txt, self.temb)


@contextmanager
def transformer(checkpoint: Checkpoint, fast: bool) -> Iterator[Transformer]:
    """The transformer in bf16, plain or with the fast CPU modules."""
    model = checkpoint.transformer(mx.bfloat16)
    with applied({"transformer": model}, {"fast": FastCPU()} if fast else {}):
        yield model


def read(checkpoint: Checkpoint, pixels: int, fast: bool) -> tuple[float, mx.array | None]:
    """Seconds of reading all weights, a block at a time."""
    tensors = weights.read(checkpoint.folder / "transformer")
    places = weights.extents(checkpoint.folder / "transformer")
    fits = page_cache.keeps(sum(place.nbytes for place in places.values()))
    blocks: dict[str, list[str]] = {}
    for name in tensors:
        blocks.setdefault(".".join(name.split(".")[:2]), []).append(name)
    start = time.perf_counter()
    for names in blocks.values():
        mx.eval([tensors.pop(name) for name in names])
        if not fits:  # like a streamed model
            page_cache.forget(places[name] for name in names)
    return time.perf_counter() - start, None


def compute(checkpoint: Checkpoint, pixels: int, fast: bool) -> tuple[float, mx.array | None]:
    """Seconds of calling one block, with its weights in memory, once for every block of the model."""
    inputs = Inputs(checkpoint, pixels)
    with transformer(checkpoint, fast) as model:
        block, rotations = model.transformer_blocks[0], model.pos_embed(inputs.grid, TEXT_TOKENS)
        mx.eval(block.parameters(), rotations)
        x = Streams(img=inputs.img, txt=inputs.txt)
        start = time.perf_counter()
        for _ in model.transformer_blocks:
            mx.eval(block(x, inputs.temb, rotations))
        return time.perf_counter() - start, None


def forward(checkpoint: Checkpoint, pixels: int, fast: bool) -> tuple[float, mx.array | None]:
    """Seconds and result of one forward pass; weights that the model holds are read beforehand."""
    inputs = Inputs(checkpoint, pixels)
    with transformer(checkpoint, fast) as model:
        mx.eval([parameter for _, parameter in tree_flatten(model.parameters())])
        start = time.perf_counter()
        out = model(inputs.latents, mx.array([0.5]), inputs.text, inputs.grid)
        mx.eval(out)
        return time.perf_counter() - start, out


ARMS: Mapping[str, Callable[[Checkpoint, int, bool], tuple[float, mx.array | None]]] = {
    "read": read,
    "compute": compute,
    "streamed": forward,
    "resident": forward,
}


def run_arm(arm: str, folder: Path, pixels: int, fast: bool) -> dict[str, Any]:
    """Runs an arm in this process; returns seconds, peak memory in bytes, and a digest of the result."""
    set_numeric_switches()
    page_cache.forget(page_cache.Extent(file) for file in weights.shards(folder / "transformer"))
    seconds, out = ARMS[arm](Checkpoint(folder, stream=arm == "streamed"), pixels, fast)
    digest = None if out is None else hashlib.sha256(np.array(out.astype(mx.float32)).tobytes()).hexdigest()[:16]
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"seconds": seconds, "peak_rss": peak, "peak_mlx": mx.get_peak_memory(), "digest": digest}


def in_child(arm: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "experiments.benchmarks.streaming", "--folder", str(args.folder)]
    command += ["--pixels", str(args.pixels), "--arm", arm, *(["--fast"] if args.fast else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def write_checkpoint(folder: Path, blocks: int) -> None:
    preset = PRESETS["transformer"]
    shape = replace(preset, transformer=replace(preset.transformer, num_layers=blocks))
    start = time.perf_counter()
    make(shape, folder)
    os.sync()  # unwritten pages would stay in the page cache
    print(f"wrote {folder} in {time.perf_counter() - start:.0f} s")


def report(results: Mapping[str, Sequence[Mapping[str, Any]]], size: int, about: str) -> None:
    seconds = {arm: statistics.median(result["seconds"] for result in rounds) for arm, rounds in results.items()}
    print(about)
    print("| arm | seconds | GB/s | peak resident GB | of it MLX GB |\n|---|---|---|---|---|")
    for arm, rounds in results.items():
        rate = "" if arm == "compute" else f"{size / seconds[arm] / 1e9:.2f}"
        peak, own = (max(result[key] for result in rounds) / 1e9 for key in ("peak_rss", "peak_mlx"))
        print(f"| {arm} | {seconds[arm]:.1f} | {rate} | {peak:.2f} | {own:.2f} |")
    slower = max(seconds["read"], seconds["compute"])
    print(f"streamed / max(read, compute): {seconds['streamed'] / slower:.2f} (target 1.2)")
    if "resident" in results:
        digests = {result["digest"] for rounds in results.values() for result in rounds} - {None}
        print("results: " + ("the same to the bit" if len(digests) == 1 else f"DIFFERENT: {sorted(digests)}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the checkpoint; written if absent")
    parser.add_argument("--blocks", type=int, default=60, help="of a checkpoint that is written")
    parser.add_argument("--pixels", type=int, default=256, help="a side")
    parser.add_argument("--rounds", type=int, default=1, help="medians of so many; arms in random order")
    parser.add_argument("--fast", action="store_true", help="all arms but read with technique=fast")
    parser.add_argument("--check", action="store_true", help="the resident model too: all weights in memory")
    parser.add_argument("--to", type=Path, help="a JSON file for what was measured")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(run_arm(args.arm, args.folder, args.pixels, args.fast)))
        return
    if not args.folder.exists():
        write_checkpoint(args.folder, args.blocks)
    arms = [arm for arm in ARMS if arm != "resident" or args.check]
    rng = np.random.default_rng(0)
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for _ in range(args.rounds):
        for arm in rng.permutation(arms):
            results[str(arm)].append(in_child(str(arm), args))
    size = sum(file.stat().st_size for file in weights.shards(args.folder / "transformer"))
    blocks = Checkpoint(args.folder).transformer_config().num_layers
    about = f"{device_name()}: {blocks} blocks, {size / 1e9:.1f} GB, {args.pixels} x {args.pixels} pixels, bf16"
    about += ", technique=fast" if args.fast else ""
    report(results, size, f"{about}, {args.rounds} round(s)")
    if args.to:
        args.to.write_text(json.dumps({"about": about, "bytes": size, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Reading a GGUF file and a float8 file through the loader, compared with plain reading of their bytes.

    python -m experiments.benchmarks.reading_files --folder DIR [--gb 4] [--rounds 3] [--to FILE]
    python -m experiments.benchmarks.reading_files --folder DIR --gb 20 --arms "plain cold" "streamed cold"

Writes three files of about `--gb` GB to DIR, with blocks of the published width of Qwen-Image 1.x and random bytes as
weights (Q8_0, Q4_K, and float8 with a scale a tensor), and deletes them afterwards. Each arm runs in its own process;
the arms of a round are in random order:

- plain: the bytes of the file in pieces of 16 MiB into one buffer;
- whole: the bytes of the file into fresh memory of its size, which the system must provide page by page;
- resident: the transformer opened and loaded, all weights in memory;
- streamed: the transformer opened with `stream=True`, and a pass through its blocks, which only ask for their weights.

Before each cold arm, the file is dropped from the page cache (Linux); a warm arm follows a reading of the file. The
peak of anonymous memory is that of RssAnon in /proc/self/status, sampled every 5 ms, above its value before the arm: it
holds the arrays, and not the pages of the file. A file larger than memory has no warm arms and no resident one: the
second command. Target: at most 1.2 times plain for streamed, 1.2 times whole for
resident, and 3 GiB streamed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from precision_lab.device import allocator, blas, page_cache

allocator.keep_freed()
blas.preload()  # before MLX is imported

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402

from precision_lab.device.environment import device_name, set_numeric_switches  # noqa: E402
from precision_lab.model.qwen_image.checkpoint import Checkpoint  # noqa: E402
from precision_lab.model.qwen_image.config import TransformerConfig  # noqa: E402
from precision_lab.model.qwen_image.transformer import Transformer  # noqa: E402
from precision_lab.synthetic import PRESETS, make  # noqa: E402

PIECE = 16 << 20
BITS = {"q8_0": 8.5, "q4_k": 4.5, "float8": 8}
"""Bits of a weight of a block."""
Shapes = Mapping[str, tuple[int, ...]]


def depth(bits: float, nbytes: float) -> int:
    """The number of blocks that take about `nbytes` bytes."""
    config = replace(TransformerConfig(), num_layers=1)
    one = sum(math.prod(shape) for name, shape in shapes_of(config).items() if "blocks" in name)
    return max(1, round(8 * nbytes / bits / one))


def shapes_of(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in tree_flatten(Transformer(config).parameters())}


class Noise:
    """Bytes without structure, as many as are asked for, of which any two are a finite float16."""

    def __init__(self) -> None:
        self._bytes = np.random.default_rng(0).integers(0, 0x7C, PIECE, np.uint8).tobytes()

    def write(self, file: Any, count: int) -> None:
        for _ in range(count // PIECE):
            file.write(self._bytes)
        file.write(self._bytes[: count % PIECE])


def write_gguf(file: Path, shapes: Shapes, kind: gguf.GGMLQuantizationType) -> None:
    """Matrices of blocks in `kind`, other matrices in BF16, the rest in F32."""
    writer, noise, sizes = gguf.GGUFWriter(file, "qwen_image"), Noise(), []
    for name, shape in shapes.items():
        form = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else gguf.GGMLQuantizationType.BF16
        form = kind if len(shape) == 2 and "blocks" in name else form
        block, size = gguf.GGML_QUANT_SIZES[form]
        row = shape[-1] // block * size
        sizes.append(math.prod(shape) // block * size)
        writer.add_tensor_info(name, (*shape[:-1], row), np.dtype(np.uint8), sizes[-1], raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    out: Any = writer.fout[0]  # type: ignore[index]
    writer.write_padding(out, out.tell())
    for size in sizes:
        noise.write(out, size)
        writer.write_padding(out, size)
    writer.close()


def write_float8(file: Path, shapes: Shapes) -> None:
    """As ComfyUI's scaled files: matrices of blocks in e4m3 with `scale_weight`, the rest in BF16."""
    entries: dict[str, Any] = {}
    at = 0

    def add(name: str, dtype: str, shape: tuple[int, ...], width: int) -> None:
        nonlocal at
        size = math.prod(shape) * width
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size

    for name, shape in shapes.items():
        coded = len(shape) == 2 and "blocks" in name
        add(name, "F8_E4M3" if coded else "BF16", shape, 1 if coded else 2)
        if coded:
            add(name.removesuffix("weight") + "scale_weight", "F32", (), 4)
    add("scaled_fp8", "F8_E4M3", (0,), 1)
    header, noise = json.dumps(entries).encode(), Noise()
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(header)) + header)
        for entry in entries.values():
            begin, end = entry["data_offsets"]
            if entry["dtype"] == "F32":
                out.write(struct.pack("<f", 1e-3))
            else:
                noise.write(out, end - begin)


def write_base(folder: Path, config: TransformerConfig) -> None:
    """The configurations of a checkpoint whose transformer is in a file; its other components are small."""
    micro = PRESETS["micro"]
    make(replace(micro, transformer=replace(micro.transformer, num_layers=1)), folder)
    file = folder / "transformer" / "config.json"
    own = json.loads(file.read_text())
    stated = {key: getattr(config, key) for key in own if hasattr(config, key)}
    file.write_text(json.dumps(own | stated))


def plain(file: Path, base: Path) -> None:
    buffer = bytearray(PIECE)
    with file.open("rb", buffering=0) as opened:
        while opened.readinto(buffer):
            pass


def whole(file: Path, base: Path) -> None:
    np.fromfile(file, np.uint8)


def resident(file: Path, base: Path) -> None:
    model = Checkpoint(base, given={"transformer": file}).transformer(mx.bfloat16)
    mx.eval(model.parameters())


def streamed(file: Path, base: Path) -> None:
    model = Checkpoint(base, stream=True, given={"transformer": file}).transformer(mx.bfloat16)
    mx.eval(model.parameters())  # what is outside the blocks
    for block in model.transformer_blocks:
        block._call = weights_of  # a block's call, without its operations
        block()


def weights_of(block: nn.Module) -> list[mx.array]:
    return [array for module in block.modules() for array in arrays(module)]


def arrays(module: nn.Module) -> list[mx.array]:
    """The parameters of a module, those on disk too."""
    found = (module[name] for name in module if not isinstance(dict.get(module, name), nn.Module | list))
    return [array for array in found if isinstance(array, mx.array)]


ARMS: Mapping[str, Callable[[Path, Path], None]] = {
    "plain": plain,
    "whole": whole,
    "resident": resident,
    "streamed": streamed,
}
STATES = ("cold", "warm")
NAMES = tuple(f"{arm} {state}" for arm in ARMS for state in STATES)


def anonymous() -> int:
    """Bytes of anonymous memory; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


@contextmanager
def sampled() -> Iterator[list[int]]:
    """The growth of anonymous memory, sampled every 5 ms."""
    start, found, over = anonymous(), [0], threading.Event()

    def sample() -> None:
        while not over.wait(0.005):
            found.append(anonymous() - start)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
        found.append(anonymous() - start)


def run_arm(arm: str, file: Path, base: Path, cold: bool) -> dict[str, Any]:
    set_numeric_switches()
    plain(file, base) if not cold else page_cache.forget([page_cache.Extent(file)])
    with sampled() as grown:
        start = time.perf_counter()
        ARMS[arm](file, base)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "anonymous": max(grown)}


def in_child(arm: str, file: Path, base: Path, cold: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "experiments.benchmarks.reading_files", "--folder", str(base), "--file", str(file)]
    done = subprocess.run(
        [*command, "--arm", arm, *(["--cold"] if cold else [])], check=True, stdout=subprocess.PIPE, text=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(form: str, folder: Path, nbytes: float, rounds: int, names: Sequence[str]) -> dict[str, Any]:
    """Writes a file, runs the arms of these `names`, and deletes it."""
    config = replace(TransformerConfig(), num_layers=depth(BITS[form], nbytes))
    base, shapes = folder / f"base_{form}", shapes_of(config)
    file = folder / f"reading_{form}{'.safetensors' if form == 'float8' else '.gguf'}"
    write_base(base, config)
    try:
        if form == "float8":
            write_float8(file, shapes)
        else:
            write_gguf(file, shapes, getattr(gguf.GGMLQuantizationType, form.upper()))
        os.sync()  # unwritten pages would stay in the page cache
        arms: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        rng = np.random.default_rng(0)
        for _ in range(rounds):
            for name in rng.permutation(list(arms)):
                arm, state = str(name).split()
                arms[str(name)].append(in_child(arm, file, base, state == "cold"))
        return {"bytes": file.stat().st_size, "blocks": config.num_layers, "arms": arms} | ratios(arms)
    finally:
        file.unlink(missing_ok=True)


def ratios(arms: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The time of our arms over those that they are compared with, in the same state and round, and their medians."""
    found = {
        f"{arm} {state} / {other}": [
            own["seconds"] / beside["seconds"]
            for own, beside in zip(arms[f"{arm} {state}"], arms[f"{other} {state}"], strict=True)
        ]
        for arm, other in (("resident", "whole"), ("streamed", "plain"))
        for state in STATES
        if f"{arm} {state}" in arms and f"{other} {state}" in arms
    }
    return {"ratios": found, "medians": {name: statistics.median(values) for name, values in found.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the files, which are deleted afterwards")
    parser.add_argument("--gb", type=float, default=4, help="of each file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=BITS, default=list(BITS))
    parser.add_argument("--arms", nargs="+", choices=NAMES, default=list(NAMES), metavar="ARM")
    parser.add_argument("--to", type=Path, help="a JSON file for what was measured")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(run_arm(args.arm, args.file, args.folder, args.cold)))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    results = {form: measure(form, args.folder, args.gb * 1e9, args.rounds, args.arms) for form in args.only}
    print(
        f"{device_name()}, {args.rounds} rounds\n| file | arm | seconds | GB/s | anonymous GiB |\n|---|---|---|---|---|"
    )
    for form, result in results.items():
        for name, rounds in result["arms"].items():
            seconds = statistics.median(each["seconds"] for each in rounds)
            peak = max(each["anonymous"] for each in rounds) / 2**30
            print(f"| {form} | {name} | {seconds:.2f} | {result['bytes'] / seconds / 1e9:.2f} | {peak:.2f} |")
    for form, result in results.items():
        print(form, ", ".join(f"{name}: {value:.2f}" for name, value in result["medians"].items()))
    if args.to:
        args.to.write_text(json.dumps({"about": device_name(), "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()

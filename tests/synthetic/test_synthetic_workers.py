"""Drawing on several threads: the same bytes, one tensor in memory for each worker, and no hanging after a failure."""

from __future__ import annotations

import filecmp
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from precision_lab.synthetic import PRESETS, make
from precision_lab.synthetic.checkpoint import weight_bytes
from precision_lab.synthetic.shards import fill, lay_out
from precision_lab.synthetic.statistics import BiasStatistics
from precision_lab.synthetic.tensors import Array, Tensor, whole

MICRO = PRESETS["micro"]
SMALL = replace(MICRO, transformer=replace(MICRO.transformer, num_layers=3), max_shard_bytes=300_000)


def tensors(count: int, draw: Callable[[int], Array]) -> list[Tensor]:
    return [whole(f"layer.{i}.weight", (4, 8), partial(draw, i)) for i in range(count)]


def test_the_number_of_workers_changes_no_byte(tmp_path: Path) -> None:
    for workers in (1, 2, 7):
        make(SMALL, tmp_path / str(workers), 5, workers=workers)
    first = tmp_path / "1"
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert len(names) > 12
    for workers in (2, 7):
        assert filecmp.cmpfiles(first, tmp_path / str(workers), names, shallow=False)[0] == names


def test_tensors_that_finish_out_of_order_stand_in_order(tmp_path: Path) -> None:
    def draw(i: int) -> Array:
        time.sleep(0.02 * (i == 0))  # finishes the first tensor last
        return np.full((4, 8), i, np.float32)

    slots = lay_out(tmp_path, "model", tensors(6, draw), max_bytes=3 * 64)
    seen: list[int] = []
    fill(slots, 4, BiasStatistics(), seen.append)
    assert seen == [64] * 6
    assert [slot.file.name for slot in slots] == ["model-00001-of-00002.safetensors"] * 3 + [
        "model-00002-of-00002.safetensors"
    ] * 3
    for i, slot in enumerate(slots):
        stored = np.frombuffer(slot.file.read_bytes()[slot.offset : slot.offset + 64], "<u2")
        assert (stored == np.float32(i).view(np.uint32) >> 16).all()
    assert {path.stat().st_size for path in tmp_path.glob("*.safetensors")} == {slots[2].offset + 64}


@pytest.mark.parametrize("raising", ["drawing", "progress"])
def test_an_error_stops_the_others(tmp_path: Path, raising: str) -> None:
    drawn: list[int] = []

    def draw(i: int) -> Array:
        if raising == "drawing" and i == 1:
            raise OSError(28, "No space left on device")
        drawn.append(i)
        time.sleep(0.005)
        return np.zeros((4, 8), np.float32)

    def written(count: int) -> None:
        if raising == "progress":
            raise KeyboardInterrupt

    slots = lay_out(tmp_path, "model", tensors(400, draw), max_bytes=1 << 20)
    with pytest.raises(OSError if raising == "drawing" else KeyboardInterrupt):
        fill(slots, 2, BiasStatistics(), written)
    assert len(drawn) < 100


def test_workers_draw_together(tmp_path: Path) -> None:
    together = threading.Barrier(3, timeout=10)

    def draw(i: int) -> Array:
        together.wait()
        return np.zeros((4, 8), np.float32)

    fill(lay_out(tmp_path, "model", tensors(6, draw), 1 << 20), 3, BiasStatistics(), lambda count: None)


def test_a_tensor_in_pieces_holds_one_at_a_time(tmp_path: Path) -> None:
    rows, width, pieces = 256, 1024, 16

    def draw() -> Iterator[Array]:
        for i in range(pieces):
            yield np.full((rows, width), i, np.float32)

    slots = lay_out(tmp_path, "model", [Tensor("embedding.weight", (pieces * rows, width), draw)], 1 << 30)
    tracemalloc.start()
    try:
        fill(slots, 2, BiasStatistics(), lambda count: None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * rows * width * 4, "of 16 pieces"
    stored = np.frombuffer(slots[0].file.read_bytes()[slots[0].offset :], "<u2").reshape(pieces, -1)
    assert (stored == (np.arange(pieces, dtype=np.float32).view(np.uint32) >> 16)[:, None]).all()


def test_transformer_is_the_published_one_with_a_small_text_encoder() -> None:
    shape, full = PRESETS["transformer"], PRESETS["full"]
    assert (shape.transformer, shape.vae, shape.scheduler, shape.growth) == (
        full.transformer,
        full.vae,
        full.scheduler,
        full.growth,
    )
    assert shape.text_encoder.hidden_size == full.transformer.joint_attention_dim
    assert weight_bytes(shape) == pytest.approx(41.4e9, rel=1e-3)


def test_the_card_of_a_stand_in_says_so(tmp_path: Path) -> None:
    wide = replace(PRESETS["transformer"].transformer, num_layers=1, num_attention_heads=1)
    small = replace(PRESETS["transformer"].text_encoder, num_hidden_layers=1, intermediate_size=64)
    shape = replace(PRESETS["transformer"], transformer=wide, text_encoder=small, vae=MICRO.vae)
    make(shape, tmp_path / "stand_in")
    assert "**a small stand-in** for the published 28 layers" in (tmp_path / "stand_in" / "README.md").read_text()
    make(SMALL, tmp_path / "micro")
    assert "stand-in" not in (tmp_path / "micro" / "README.md").read_text()

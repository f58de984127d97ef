"""Checkpoints with modules made fragile at random places, and the search that must name exactly those.

Without plants the checkpoint is synthetic, finite in float16 and little changed by 4 bits. The kinds of fragility:

- overflow: three hidden channels of a feed-forward get a bias of 60000 and rows 2^13 times as large, and the second
  linear divides them by 2^16. In float16 they overflow inside the feed-forward, whose output stays far below 65504.
  Cure: float32 at the whole feed-forward.
- outliers: in each row and each group of 64 of a linear, one weight is 40 times their rms. It is at a channel that is
  nearly inactive, since the rows before it are divided by 64. In 4 bits, all other weights of the group become 0.
- channel: a column in each group of 64 of a linear is multiplied by 64, and the rows before it are divided by 64. In 4
  bits, the other columns lose six bits.

For the last two, the linear is the second of an image feed-forward or the output projection of an image attention, and
its output is multiplied by 16, so that the result depends on it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from precision_lab.cli import main
from precision_lab.synthetic import PRESETS, make

BLOCKS = 8
_PRODUCERS = {"img_mlp.net.2": ("img_mlp.net.0.proj",), "attn.to_out.0": ("attn.to_v", "attn.add_v_proj")}
"""The linears before each linear, by their paths in a block."""
_GROUP = 64

Array = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Kind:
    """A kind of fragility.

    search: overrides of `culprits`. has_budget: whether the criterion is a budget of drift. sites: the addresses of
    all sites that can be narrow or wide, of a checkpoint. variant: that of a run in which some sites are narrow and
    the others wide.
    """

    name: str
    search: Sequence[str]
    has_budget: bool
    plant: Callable[[Weights, np.random.Generator, int], set[str]]
    sites: Callable[[Path], set[str]]
    variant: Callable[[Sequence[str], Sequence[str]], dict[str, Any]]


class Weights:
    """The transformer's tensors of a checkpoint, by the name that the file has for them."""

    def __init__(self, folder: Path):
        [self._path] = (folder / "transformer").glob("*.safetensors")
        self._tensors, self._metadata = mx.load(str(self._path), return_metadata=True)  # type: ignore[assignment]

    def change(self, name: str, change: Callable[[Array], Array]) -> None:
        """Applies a change in float32 to a tensor, which keeps its dtype."""
        old = self._tensors[name]
        new = change(np.array(old.astype(mx.float32)))
        self._tensors[name] = mx.array(new).astype(old.dtype)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    @property
    def linears(self) -> set[str]:
        """The addresses of the linears."""
        matrices = (name for name, tensor in self._tensors.items() if tensor.ndim == 2)
        return {name.removesuffix(".weight") for name in matrices if name.endswith(".weight")}

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return 1 + max(int(name.split(".")[1]) for name in self._tensors if name.startswith("transformer_blocks."))

    def save(self) -> None:
        mx.eval(self._tensors)
        mx.save_safetensors(str(self._path), self._tensors, self._metadata)


def healthy(folder: Path) -> Path:
    """A checkpoint without plants: 8 blocks, width 64."""
    micro = PRESETS["micro"]
    make(replace(micro, transformer=replace(micro.transformer, num_layers=BLOCKS)), folder)
    return folder


def planted(checkpoint: Path, folder: Path, kind: Kind, seed: int) -> set[str]:
    """Writes a copy with 1 to 5 fragile sites of a kind to `folder`; returns their addresses."""
    shutil.copytree(checkpoint, folder)
    rng = np.random.default_rng([seed, *kind.name.encode()])
    weights = Weights(folder)
    fragile = kind.plant(weights, rng, int(rng.integers(1, 6)))
    weights.save()
    return fragile


def _scaled_rows(rows: Indices, factor: float) -> Callable[[Array], Array]:
    def change(x: Array) -> Array:
        x[rows] *= factor
        return x

    return change


def _with_rows(rows: Indices, value: float) -> Callable[[Array], Array]:
    def change(x: Array) -> Array:
        x[rows] = value
        return x

    return change


def _scaled_columns(columns: Indices, factor: float) -> Callable[[Array], Array]:
    def change(x: Array) -> Array:
        x[:, columns] *= factor
        return x

    return change


def _overflow(weights: Weights, rng: np.random.Generator, count: int) -> set[str]:
    places = [f"transformer_blocks.{b}.{s}_mlp" for b in range(weights.depth) for s in ("img", "txt")]
    chosen = [str(place) for place in rng.choice(places[:-1], count, replace=False)]  # the last text reaches nothing
    for place in chosen:
        rows = rng.choice(weights.shape(f"{place}.net.2.weight")[1], 3, replace=False)
        weights.change(f"{place}.net.0.proj.weight", _scaled_rows(rows, 2.0**13))
        weights.change(f"{place}.net.0.proj.bias", _with_rows(rows, 6e4))
        weights.change(f"{place}.net.2.weight", _scaled_columns(rows, 2.0**-16))
    return set(chosen)


def _outliers(weights: Weights, rng: np.random.Generator, count: int) -> set[str]:
    def fragile(idle: Indices) -> Callable[[Array], Array]:
        def change(x: Array) -> Array:
            x[:, idle] = 40 * np.sqrt(np.mean(x**2)) * rng.choice([-1.0, 1.0], (len(x), len(idle)))
            return x

        return change

    return _linears(weights, rng, count, fragile)


def _channel(weights: Weights, rng: np.random.Generator, count: int) -> set[str]:
    return _linears(weights, rng, count, lambda columns: _scaled_columns(columns, 64.0))


def _linears(
    weights: Weights, rng: np.random.Generator, count: int, fragile: Callable[[Indices], Callable[[Array], Array]]
) -> set[str]:
    """Makes linears fragile at one channel of each group, whose producers get rows that are divided by 64."""
    places = [(f"transformer_blocks.{b}", name) for b in range(weights.depth) for name in _PRODUCERS]
    chosen = [places[at] for at in rng.choice(len(places), count, replace=False)]
    for block, name in chosen:
        linear = f"{block}.{name}"
        channels = weights.shape(f"{linear}.weight")[1]
        columns = np.array([start + rng.integers(_GROUP) for start in range(0, channels, _GROUP)])
        for producer in _PRODUCERS[name]:
            for kind in ("weight", "bias"):
                weights.change(f"{block}.{producer}.{kind}", _scaled_rows(columns, 1 / 64))
        weights.change(f"{linear}.weight", fragile(columns))
        for kind in ("weight", "bias"):
            weights.change(f"{linear}.{kind}", lambda x: 16 * x)
    return {f"{block}.{name}" for block, name in chosen}


_NAMES = ("img_mlp", "txt_mlp", "attn.attend", "attn.norm_q", "attn.norm_k", "img_norm1", "img_norm2", "txt_norm1")
_MODULES = f"transformer_blocks.*.{{{','.join(_NAMES)}}}"


def _modules(checkpoint: Path) -> set[str]:
    return {f"transformer_blocks.{block}.{name}" for block in range(Weights(checkpoint).depth) for name in _NAMES}


def _float16(narrow: Sequence[str], wide: Sequence[str]) -> dict[str, Any]:
    cure = {"_target_": "precision_lab.techniques.float32.Float32", "sites": list(wide)}
    return {"dtype": "float16", "technique": {"cure": cure}}


def _four_bits(narrow: Sequence[str], wide: Sequence[str]) -> dict[str, Any]:
    rules = [{"sites": list(narrow), "bits": 4}]
    harm = {"_target_": "precision_lab.techniques.quantized_weights.QuantizedWeights", "rules": rules}
    return {"dtype": "float32", "technique": {"harm": harm}}


def _all_linears(checkpoint: Path) -> set[str]:
    return Weights(checkpoint).linears


_CURE = ("dtype=float16", "candidate=[float32]", "at=found", f"of=['{_MODULES}']")
_HARM = ("candidate=[affine4]",)
KINDS = (
    Kind("overflow", _CURE, False, _overflow, _modules, _float16),
    Kind("outliers", _HARM, True, _outliers, _all_linears, _four_bits),
    Kind("channel", _HARM, True, _channel, _all_linears, _four_bits),
)

CASES = ("image.height=32", "image.width=48", "sampler.steps=2", "sampler.guidance_scale=1.0", "workers=1")
CRITERION_PROMPT = "two red circles"
"""The prompt of a search; another one is for its validation."""

CASE = (*CASES, f"prompts=[{CRITERION_PROMPT},a blue square]", "by=[site]")
"""The cases of a search and of its validation, and its groups."""


def search(checkpoint: Path, out: Path, *overrides: str) -> dict[str, Any]:
    """What `culprits` finds in a checkpoint. Raises RuntimeError if it fails."""
    code = main(["culprits", f"model.path={checkpoint}", *CASE, f"out={out}", *overrides])
    if code:
        raise RuntimeError(f"culprits ended with exit code {code}")
    found: dict[str, Any] = json.loads((out / "culprits.json").read_text())
    return found


def budget(checkpoint: Path, folder: Path) -> float:
    """The drift that the searches in 4 bits allow: 1.5 times that of the checkpoint without plants, all in 4 bits."""
    [overrides] = {kind.search for kind in KINDS if kind.has_budget}
    found = search(checkpoint, folder / "healthy_search", *overrides, "criterion.drift=1000")
    return 1.5 * float(found["nothing_spared"]["value"])


def searched(model: Path, out: Path, kind: Kind, fragile: set[str], drift: float) -> dict[str, Any]:
    """What the search finds in a checkpoint with fragile sites, and whether it is exactly those."""
    criterion = f"criterion.drift={drift}" if kind.has_budget else "criterion=finite"
    found = search(model, out, *kind.search, criterion)
    groups = [culprit["group"] for culprit in found["culprits"]]
    return {
        "found": groups,
        "exact": set(groups) == fragile,
        **{key: found[key] for key in _KEYS},
        "validated": found["validation"]["holds"] if found["validation"] else None,
    }


_KEYS = ("groups", "runs", "bound", "checks", "violations", "fallback", "left_out", "is_minimal", "is_only")

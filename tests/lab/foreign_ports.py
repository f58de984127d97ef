"""Dumps of other implementations: the lab's own pass with planted modules, and the guide's example of diffusers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.instrument.arrays import real
from precision_lab.instrument.sites import Wrapper, select, walk
from precision_lab.instrument.swap import swapped
from precision_lab.instrument.tap import ports, tapped
from precision_lab.lab.one_pass import Pass

GUIDE = Path(__file__).parents[2] / "experiments" / "guide" / "foreign.md"


class Planted(Wrapper):
    """Calls `wrong` with the module and its arguments in the place of the module."""

    def __init__(self, inner: nn.Module, wrong: Callable[..., Any]):
        super().__init__(inner)
        self._wrong = wrong

    def __call__(self, *args: Any) -> Any:
        return self._wrong(self.inner, *args)


def dump_of_lab(
    one: Pass,
    dtype: mx.Dtype,
    file: Path,
    planted: Mapping[str, Callable[..., Any]] | None = None,
    kept: Callable[[str], bool] = lambda name: True,
    stored: mx.Dtype | None = None,
) -> Path:
    """Writes all arrays of operations in a pass in `dtype`, with planted operations by pattern."""
    components = one.components(dtype)
    root = components[one.source.layout.default]
    arrays: dict[str, mx.array] = {}

    def on_call(call: Any) -> None:
        for port in ports(call, ["in", "out"]):
            name = f"{call.site.path}.{port.name}"
            if kept(name) and (mx.issubdtype(port.array.dtype, mx.floating) or port.array.dtype == mx.complex64):
                array = real(port.array)
                arrays[name] = array.astype(stored or array.dtype)

    arguments = one.arguments(dtype)
    sites = [site for site in walk(components) if site.component == one.source.layout.default]
    wrong = {site: Planted(site.module, change) for p, change in (planted or {}).items() for site in select(p, sites)}
    with swapped(components, wrong):
        now = [site for site in walk(components) if site.component == one.source.layout.default]
        holders = {site.path[:at] for site in now for at, letter in enumerate(site.path) if letter == "."}
        with tapped([site for site in now if site.path not in holders], on_call):
            mx.eval(root(**arguments))
    mx.eval(arrays)
    mx.save_safetensors(str(file), arrays)
    return file


def dump_of_diffusers(
    folder: Path, inputs: Path, dtype: str, file: Path, plant: Callable[[Any], None] = lambda model: None
) -> Path:
    """Runs the example of the guide. plant: changes the model before the pass."""
    code = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)[0]
    settings = f"MODEL, INPUTS, DUMP, DTYPE = {str(folder)!r}, {str(inputs)!r}, {str(file)!r}, torch.{dtype}"
    code, count = re.subn(r"^MODEL, INPUTS, DUMP, DTYPE = .*$", settings.replace("\\", "/"), code, flags=re.MULTILINE)
    assert count == 1
    before, hooked = code.split("arrays = {}", 1)
    scope: dict[str, Any] = {}
    exec(before, scope)
    plant(scope["model"])
    exec(f"arrays = {{}}{hooked}", scope)
    return file


# --- wrong operations, each of the module that it takes the place of


def swapped_modulation(module: nn.Module, x: mx.array, shift: mx.array, scale: mx.array) -> mx.array:
    return module(x, scale, shift)


def modulation_without_one(module: nn.Module, x: mx.array, shift: mx.array, scale: mx.array) -> mx.array:
    return module(x, shift, scale - 1)


def halves_rotated(module: nn.Module, x: mx.array, rotation: mx.array) -> mx.array:
    """Channels i and i + C / 2 instead of neighbours."""
    halves = mx.stack(mx.split(x, 2, axis=-1), axis=-1).reshape(x.shape)
    turned = module(halves, rotation).reshape(*x.shape[:-1], -1, 2)
    return mx.concatenate([turned[..., 0], turned[..., 1]], axis=-1)


def rotated_back(module: nn.Module, x: mx.array, rotation: mx.array) -> mx.array:
    return module(x, mx.conjugate(rotation))


def attention_unscaled(module: nn.Module, q: mx.array, *rest: Any) -> mx.array:
    return module(q * q.shape[-1] ** 0.5, *rest)


def attention_by_width(module: nn.Module, q: mx.array, *rest: Any) -> mx.array:
    """The scale of the whole width instead of that of a head."""
    return module(q * q.shape[2] ** -0.5, *rest)


def image_first(module: nn.Module, q: mx.array, *rest: Any) -> mx.array:
    """Queries in the order image, text, whose results are taken for those of text, image."""
    return module(mx.concatenate([q[:, 6:], q[:, :6]], axis=1), *rest)


def exact_gelu(module: nn.Module, x: mx.array) -> mx.array:
    return nn.gelu(x.astype(mx.float32)).astype(x.dtype)


def norm_with_eps(eps: float) -> Callable[..., mx.array]:
    def wrong(module: nn.Module, x: mx.array) -> mx.array:
        return mx.fast.layer_norm(x, None, None, eps)

    return wrong


def norm_without_weight(module: nn.Module, x: mx.array) -> mx.array:
    return mx.fast.rms_norm(x, mx.ones_like(module.weight), module.eps)


def without_bias(module: nn.Module, x: mx.array) -> mx.array:
    return module(x) - module.bias.astype(x.dtype)


def sines_first(module: nn.Module, timestep: mx.array) -> mx.array:
    cos, sin = mx.split(module(timestep), 2, axis=-1)
    return mx.concatenate([sin, cos], axis=-1)


def coarse_frequencies(module: nn.Module, timestep: mx.array) -> mx.array:
    frequencies = module._frequencies.astype(mx.bfloat16).astype(mx.float32)
    angles = 1000 * (timestep.astype(mx.float32)[:, None] * frequencies)
    return mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1)


def ungated(module: nn.Module, residual: mx.array, gate: mx.array, update: mx.array) -> mx.array:
    return residual + update


def relu(module: nn.Module, x: mx.array) -> mx.array:
    return nn.relu(x)


def unchanged(module: nn.Module, x: mx.array, *rest: Any) -> mx.array:
    return x


def scaled(module: nn.Module, *args: Any) -> mx.array:
    return module(*args) * 1.03


def other_order_of_sums(module: nn.Module, x: mx.array) -> mx.array:
    """The same linear with its sums in another order."""
    order = mx.array(np.random.default_rng(0).permutation(x.shape[-1]))
    y = x.astype(mx.float32)[..., order] @ module.weight.astype(mx.float32)[:, order].T
    return (y + module.bias.astype(mx.float32) if "bias" in module else y).astype(x.dtype)

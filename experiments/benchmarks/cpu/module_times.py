"""The time of a forward pass by class of leaf module, with each module evaluated alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from experiments.benchmarks.cpu import mlx_model
from experiments.benchmarks.cpu.shapes import Shape
from precision_lab.instrument.sites import Wrapper, children, walk
from precision_lab.instrument.swap import swapped
from precision_lab.model.qwen_image.transformer import Transformer
from precision_lab.techniques.base import Technique, applied

REST = "rest"
"""Operations outside leaf modules: concatenations, splits, reshapes."""


class _Timed(Wrapper):
    def __init__(self, inner: nn.Module, name: str, seconds: Counter[str]):
        super().__init__(inner)
        self._name, self._seconds = name, seconds

    def __call__(self, *arguments: Any) -> Any:
        mx.eval([a for a in arguments if isinstance(a, mx.array)])
        start = time.perf_counter()
        out = self.inner(*arguments)
        mx.eval(out)
        self._seconds.update({self._name: time.perf_counter() - start})
        return out


def measure(
    model: Transformer, shape: Shape, dtype: mx.Dtype, techniques: Mapping[str, Technique], repeats: int = 2
) -> dict[str, float]:
    """{plain class of the module: seconds in the fastest forward}, and the rest."""
    components = {"transformer": model}
    names = {site: type(site.module).__name__ for site in walk(components)}
    quickest: dict[str, float] = {}
    with applied(components, techniques):
        leaves = [site for site in walk(components) if not any(True for _ in children(site.module))]
        seconds: Counter[str] = Counter()
        with swapped(components, {site: _Timed(site.module, names[site], seconds) for site in leaves}):
            for _ in range(repeats):
                seconds.clear()
                total, _output = mlx_model.forward(model, shape, dtype)
                if not quickest or total < sum(quickest.values()):
                    quickest = {**seconds, REST: total - sum(seconds.values())}
    return quickest

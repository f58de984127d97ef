"""A model that the laboratory has never heard of: an MLP that denoises vectors, without text, streams or pictures."""

from dataclasses import dataclass, field
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.errors import InputError
from precision_lab.instrument.scope import scope
from precision_lab.record.layout import Layout, Result
from precision_lab.record.manifest import Checkpoint
from precision_lab.settings import checked


class Update(nn.Module):
    def __call__(self, x, noise, level):
        return x - level * noise


class Denoiser(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.stages = [nn.Linear(width, width) for _ in range(depth)]
        self.denoise = Update()


@dataclass(frozen=True)
class Settings:
    steps: int = 4
    width: int = 8


class State(NamedTuple):
    x: mx.array


class Step(NamedTuple):
    sigma: float
    output: mx.array
    result: mx.array
    state: State


@dataclass
class Subject:
    net: Denoiser
    dtype: mx.Dtype
    count: int

    @property
    def components(self):
        return {"net": self.net}

    def start(self, case):
        noise = np.random.default_rng(case.seed).standard_normal((2, case.settings["width"]), dtype=np.float32)
        return State(mx.array(noise).astype(self.dtype))

    def step(self, state, number):
        sigma = 1 - number / self.count
        with scope(step=number, sigma=sigma):
            hidden = state.x
            for stage in self.net.stages:
                hidden = nn.relu(stage(hidden))
            x = self.net.denoise(state.x, hidden, 0.1 * sigma)
        return Step(sigma, hidden, x, State(x))

    def picture(self, state):
        return None


@dataclass
class Source:
    """seed draws the weights; depth is the number of stages."""

    name: str
    seed: int = 0
    depth: int = 3
    _loaded: dict = field(default_factory=dict, init=False)

    @property
    def layout(self):
        return Layout(("net",), "net", Result("net:denoise", "vectors"), blocks=("net:stages.*",), depth=self.depth)

    @property
    def checkpoint(self):
        return Checkpoint(self.name, "drawn", f"{self.seed:064x}", "synthetic", settings={"depth": self.depth})

    def steps(self, case):
        settings = checked(Settings, case.settings)
        if settings.width != 8:
            raise InputError(f"sampler.width is {settings.width}, expected 8, the width of the net")
        return settings.steps

    def load(self, dtype):
        if dtype not in self._loaded:
            mx.random.seed(self.seed)
            net = Denoiser(8, self.depth)
            net.set_dtype(dtype)
            self._loaded[dtype] = Subject(net, dtype, 4)
        return self._loaded[dtype]

"""mflux's transformer of a shape on MLX, with our arrays under its names.

mflux's modules are unchanged. Only its configuration package is replaced, by the one constant that the transformers
read from it (`ModelConfig.precision`). The original imports schedulers, a resolver of checkpoints and four third-party
packages (PIL, platformdirs, huggingface_hub, tqdm) that a forward pass does not need.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module, metadata
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from experiments.benchmarks.gpu.mlx_model import Forward, Inputs, Opener
from experiments.benchmarks.gpu.shapes import Shape

_CONFIG_PACKAGE = "mflux.models.common.config"


class Peer(Protocol):
    """What `mflux_peer` of an architecture has."""

    MODULE: str
    """Where the class of the transformer is."""
    RENAMED: Sequence[tuple[str, str]]
    """Patterns in names of our parameters, and their replacements in mflux's."""

    def built(self, module: ModuleType, config: Any) -> nn.Module:
        """The transformer, without weights."""

    def generating(self, model: Any) -> AbstractContextManager[None]:
        """What a generation of mflux enters around its steps."""


def mflux(shape: Shape, model: nn.Module) -> Opener:
    """Opens mflux's transformer over the arrays of `model`.

    It is called as in mflux's own generation, with a mask of ones. Where that packs weights, `model` receives views of
    the packed arrays, so that the old ones are freed.
    """

    @contextmanager
    def opened() -> Iterator[Forward]:
        peer: Peer = shape.module("mflux_peer")
        names = {name: _renamed(name, peer.RENAMED) for name, _ in tree_flatten(model.parameters())}
        twin = over_arrays_of(shape, model)
        mask = mx.ones((1, shape.text_tokens))

        def forward(inputs: Inputs, timestep: float) -> mx.array:
            config = SimpleNamespace(height=inputs.side, width=inputs.side)
            result: mx.array = twin(timestep, config, inputs.latents, inputs.text, mask)
            return result

        with peer.generating(twin):
            arrays = dict(tree_flatten(twin.parameters()))
            model.update(tree_unflatten([(name, arrays[renamed]) for name, renamed in names.items()]))
            yield forward

    return opened


def over_arrays_of(shape: Shape, model: nn.Module) -> Any:
    """mflux's transformer over our arrays: each of its parameters is one of ours, and all of ours are used."""
    peer: Peer = shape.module("mflux_peer")
    module = imported_with_precision(peer.MODULE, model.proj_out.weight.dtype)
    return over_arrays(peer.built(module, shape.config), model, peer.RENAMED)


def over_arrays(twin: Any, model: nn.Module, renamed: Sequence[tuple[str, str]]) -> Any:
    """`twin` with the arrays of `model`, under names that are `renamed`."""
    twin.load_weights(
        [(_renamed(name, renamed), array) for name, array in tree_flatten(model.parameters())], strict=True
    )
    return twin


def version() -> str | None:
    try:
        return metadata.version("mflux")
    except metadata.PackageNotFoundError:
        return None


def _renamed(name: str, renamed: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in renamed:
        name = re.sub(pattern, replacement, name)
    return name


def imported_with_precision(name: str, dtype: mx.Dtype) -> ModuleType:
    """mflux's module `name`. `dtype` is that of the modulations; mflux's own default is bfloat16."""
    if _CONFIG_PACKAGE not in sys.modules:
        package, module = ModuleType(_CONFIG_PACKAGE), ModuleType(f"{_CONFIG_PACKAGE}.config")
        package.ModelConfig = type("ModelConfig", (), {"precision": mx.bfloat16})  # type: ignore[attr-defined]
        package.Config = module.Config = SimpleNamespace  # type: ignore[attr-defined]
        sys.modules |= {package.__name__: package, module.__name__: module}
    module = import_module(name)
    sys.modules[_CONFIG_PACKAGE].ModelConfig.precision = dtype  # type: ignore[attr-defined]
    return module

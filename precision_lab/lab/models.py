"""The checkpoint of a run, and its pipelines for several dtypes, sharing weights wherever that is exact."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
from mlx.utils import tree_flatten

from precision_lab.lab.spec import ModelSpec
from precision_lab.model.qwen_image.checkpoint import Checkpoint, locate
from precision_lab.model.qwen_image.pipeline import Pipeline
from precision_lab.synthetic import SCHEME, on_demand


def open_checkpoint(spec: ModelSpec) -> Checkpoint:
    """The checkpoint a run asks for, fetched from the Hub or made if it must be. Raises InputError if there is none."""
    if spec.path.startswith(SCHEME):
        folder = on_demand(spec.path.removeprefix(SCHEME))
    else:
        folder = locate(spec.path, spec.revision)
    weights_dtype = None if spec.weights_dtype is None else getattr(mx, spec.weights_dtype)
    return Checkpoint(folder, weights_dtype, spec.inflate, spec.stream)


class Models:
    """`models(dtype)` computes in that dtype; weights stored in it, or bound for fp32, are loaded once.

    Streamed weights belong to one pipeline each: what is not in memory cannot be shared, and has no known dtype.
    """

    def __init__(self, checkpoint: Checkpoint):
        self._checkpoint = checkpoint
        self._loaded: dict[mx.Dtype, Pipeline] = {}

    def __call__(self, dtype: mx.Dtype) -> Pipeline:
        if dtype not in self._loaded:
            stored = None if self._checkpoint.stream else self._loaded.get(mx.float32)
            if stored is not None and _dtypes(stored) == {dtype}:
                self._loaded[dtype] = replace(stored, dtype=dtype)
            else:
                self._loaded[dtype] = self._checkpoint.pipeline(dtype)
        return self._loaded[dtype]


def _dtypes(pipeline: Pipeline) -> set[mx.Dtype]:
    modules = pipeline.components.values()
    arrays = [array for module in modules for _, array in tree_flatten(module.parameters())]
    return {array.dtype for array in arrays if mx.issubdtype(array.dtype, mx.floating)}  # packed weights have no say

"""NVIDIA ModelOpt: `quant_algo` and the modules that it ignores, in config.json or hf_quant_config.json.

An entry is a pattern of Python's `fnmatch`, for the whole name or for its first part.

Source: sgl-project/sglang, python/sglang/multimodal_gen/runtime/layers/quantization/modelopt_fp8.py; vllm-project/vllm,
vllm/model_executor/layers/quantization/modelopt.py (exclude_modules).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from precision_lab.numerics.packing import Quantization
from precision_lab.recipes.globs import wildcards
from precision_lab.recipes.ignore_lists import IgnoreList
from precision_lab.recipes.recipe import Float8, Format


class ModelOpt(IgnoreList):
    title = "ModelOpt"
    methods: ClassVar[Mapping[str, tuple[Format, str]]] = {
        "FP8": (Float8("tensor", True), "one scale for all inputs, from a calibration, instead of one a token"),
        "NVFP4": (Quantization(16, 4, "nvfp4", tensor_scale=True), "inputs in nvfp4"),
    }
    keys = ("ignore", "exclude_modules")
    method_keys = ("quant_algo",)

    def configured(self, method: str, ignored: Sequence[str]) -> dict[str, Any]:
        entry = {"quant_method": "modelopt", "quant_algo": method, self.keys[0]: list(ignored)}
        return {"quantization_config": entry}

    def expression(self, entry: str) -> str:
        return f"^{wildcards(entry)}$"

    def texts(self, name: str) -> tuple[str, ...]:
        return name, name.split(".")[0]

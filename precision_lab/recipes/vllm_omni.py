"""vLLM-Omni: `ignored_layers` of the methods that quantise when a model is loaded, for `quantization_config`.

An entry is a name, a pattern with `*` or `?`, or an expression after `re:` that must match from the beginning. Earlier
versions took an entry as a part of the name, as in the documented `img_mlp`; an entry that is a whole segment of paths,
and nothing else, is read so.

Source: vllm-project/vllm-omni, vllm_omni/quantization/fp8_config.py, factory.py, .../qwen_image_transformer.py; vllm-
project/vllm, vllm/model_executor/layers/quantization/compressed_tensors/utils.py (should_ignore_layer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from precision_lab.numerics.packing import Quantization
from precision_lab.recipes.globs import expression, wildcards
from precision_lab.recipes.ignore_lists import IgnoreList
from precision_lab.recipes.recipe import Float8, Format, Target
from precision_lab.record.patterns import patterns_of

_EXPRESSION = "re:"
_INPUTS = "its inputs are rounded like its weights"


class VllmOmni(IgnoreList):
    title = "vLLM-Omni"
    methods: ClassVar[Mapping[str, tuple[Format, str]]] = {
        "fp8": (Float8("tensor", True), ""),
        "mxfp8": (Quantization(32, 8, "mxfp8"), _INPUTS),
        "mxfp4": (Quantization(32, 4, "mxfp4"), _INPUTS),
    }
    keys = ("ignored_layers",)
    method_keys = ("method", "quant_method")

    def configured(self, method: str, ignored: Sequence[str]) -> dict[str, Any]:
        return {"method": method, self.keys[0]: list(ignored)}

    def listed(self, ignored: Sequence[str], target: Target) -> list[str]:
        everything = [("", name) for name in target.naming.ours(target.channels)]
        globs = patterns_of([("", name) for name in ignored], everything)
        return [glob if "*" not in glob and "{" not in glob else f"{_EXPRESSION}^{expression(glob)}$" for glob in globs]

    def expression(self, entry: str) -> str:
        if not entry.startswith(_EXPRESSION):
            return f"^{wildcards(entry)}$"
        text = entry.removeprefix(_EXPRESSION)
        return text if text.startswith("^") else f"^{text}"

    def meant(self, entry: str, name: str) -> bool:
        return entry in name.split(".")

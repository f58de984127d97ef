"""SGLang: `ignored_layers` of the method fp8, in `quantization_config` of the transformer's config.json.

The names are compared as wholes, with those that the layers have there.

Source: sgl-project/sglang, python/sglang/multimodal_gen/runtime/layers/quantization/fp8.py (Fp8Config),
python/sglang/srt/layers/quantization/utils.py (is_layer_skipped), .../models/dits/qwen_image*.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from precision_lab.recipes.globs import escaped
from precision_lab.recipes.ignore_lists import IgnoreList
from precision_lab.recipes.recipe import Float8, Format


class SGLang(IgnoreList):
    title = "SGLang"
    methods: ClassVar[Mapping[str, tuple[Format, str]]] = {"fp8": (Float8("tensor", True), "")}
    keys = ("ignored_layers", "modules_to_not_convert")
    method_keys = ("quant_method",)

    def configured(self, method: str, ignored: Sequence[str]) -> dict[str, Any]:
        entry = {"quant_method": method, "activation_scheme": "dynamic", self.keys[0]: list(ignored)}
        return {"quantization_config": entry}

    def expression(self, entry: str) -> str:
        return f"^{escaped(entry.removeprefix('model.'))}$"

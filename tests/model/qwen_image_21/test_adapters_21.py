"""Adapters of Qwen-Image-2.1 against peft on the transformer of diffusers."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from precision_lab.techniques.base import applied
from precision_lab.techniques.lora import LoRA
from precision_lab.techniques.lora_fused import FusedLoRA
from tests.model.oracle import relative_l2
from tests.model.qwen_image_21.oracle import copy_of, ours, random_inputs, random_shape, random_transformer, reference

TARGETS = ["to_q", "to_out.0", "gate_layer", "img_mlp.proj", "img_mlp.out", "modulation.1", "in_layer", "proj_out"]


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_an_adapter_equals_peft(joined, cached, tmp_path):
    """joined: gate_layer and proj in one linear, gate_up, as in ComfyUI's files."""
    rng = np.random.default_rng(2 * joined + cached)
    shape = random_shape(rng, layers=2)
    model = random_transformer(3, shape)
    transformer, inputs = copy_of(model), random_inputs(rng, (4, 6), shape)
    plain = reference(model, inputs)
    inject_adapter_in_model(LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS), model)
    generator = torch.Generator().manual_seed(4)
    factors = {name: p for name, p in model.named_parameters() if "lora_" in name}
    with torch.no_grad():
        for p in factors.values():
            p.normal_(generator=generator).mul_(0.4 * p.shape[1] ** -0.5)
        for name, p in factors.items():
            if joined and "gate_layer.lora_A" in name:
                factors[name.replace("gate_layer", "proj")].copy_(p)
    expected = reference(model, inputs)
    assert relative_l2(plain, expected) > 0.01
    tensors = {key.removeprefix("base_model.model."): p for key, p in get_peft_model_state_dict(model).items()}
    if joined:
        for name in [name for name in tensors if "gate_layer" in name]:
            gate, proj = tensors.pop(name), tensors.pop(name.replace("gate_layer", "proj"))
            rows = torch.cat([gate, proj]) if "lora_B" in name else gate
            tensors[name.replace("gate_layer", "gate_up")] = rows
    tensors = {f"diffusion_model.{name}": p.detach().contiguous() for name, p in tensors.items()}
    paths = {name.removesuffix(".lora_A.weight") for name in tensors if name.endswith("lora_A.weight")}
    save_file(tensors | {f"{path}.alpha": torch.tensor(5.0) for path in paths}, tmp_path / "lora.safetensors")
    for technique in (LoRA(str(tmp_path)), FusedLoRA(str(tmp_path))):
        with applied({"transformer": transformer}, {"adapter": technique}):
            assert relative_l2(ours(transformer, inputs, mx.float32, cached), expected) <= 1e-5

"""The second part of `same_function_mlx`: runs diffusers on its weights and inputs, and compares all libraries."""

from __future__ import annotations

from dataclasses import replace

import torch
from safetensors.torch import load_file

from experiments.benchmarks.gpu import diffusers_model
from experiments.benchmarks.gpu.diffusers_model import DEVICE, Inputs
from experiments.benchmarks.gpu.part import Job
from experiments.benchmarks.gpu.rounds import record_error
from precision_lab.numerics.metrics import compare

TIMESTEP = 0.5
REFERENCE = "ours plain/float32"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def run(job: Job) -> None:
    """Writes rows of kind "same_function": each library and dtype against ours in fp32."""
    weights = load_file(job.scratch / "weights.safetensors")
    given = load_file(job.scratch / "inputs.safetensors")
    outputs = load_file(job.scratch / "outputs.safetensors")
    blocks = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("transformer_blocks."))
    shape = replace(job.shape, config=replace(job.shape.config, num_layers=blocks))
    for dtype_name, dtype in DTYPES.items():
        model = diffusers_model.built(shape, dtype)
        model.load_state_dict(weights, strict=True)
        latents, text = (given[name].to(DEVICE, dtype) for name in ("latents", "text"))
        inputs = Inputs(latents, text, job.shape.forward_sides[0])
        models = {"diffusers eager": model}
        if dtype == torch.bfloat16:  # as in the timing
            models["diffusers compiled"] = diffusers_model.compiled_copy(shape, model)
        for name, forward in diffusers_model.forwards(shape, models, model).items():
            try:
                output = forward(inputs, TIMESTEP)
            except Exception as error:
                record_error(job.writer, {"arm": name, "dtype": dtype_name, "what": "same function"}, error)
                continue
            outputs[f"{name}/{dtype_name}"] = output.float().cpu()
    reference = outputs[REFERENCE].numpy()
    for label, output in outputs.items():
        name, dtype_name = label.split("/")
        metrics = compare(output.numpy(), reference).to_json()
        job.writer.add("same_function", arm=name, dtype=dtype_name, blocks=blocks, against=REFERENCE, **metrics)

"""diffusers' own pipeline on the checkpoint, for prompts without images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from transformers import AutoTokenizer, BatchEncoding, Qwen3VLForConditionalGeneration


class TextProcessor:
    """The part of Qwen3VLProcessor that prompts without images need; that class needs torchvision."""

    def __init__(self, folder: Path):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.chat_template = (folder / "chat_template.jinja").read_text()

    def __call__(self, text: Sequence[str], **options: Any) -> BatchEncoding:
        return self.tokenizer(list(text), **options)

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[list[int]]:
        """Token ids of one conversation, as a batch of one."""
        ids: list[int] = self.tokenizer.apply_chat_template(messages, chat_template=self.chat_template, **options)
        return [ids]


def load(folder: Path, dtype: torch.dtype, device: str = "cpu") -> QwenImage21Pipeline:
    """The pipeline with a text-only processor, so that it runs where torchvision is missing."""
    classes = {
        "vae": AutoencoderKLQwenImage21,
        "text_encoder": Qwen3VLForConditionalGeneration,
        "transformer": QwenImage21Transformer2DModel,
    }
    parts = {name: part.from_pretrained(folder / name, torch_dtype=dtype) for name, part in classes.items()}
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    pipeline = _TextPipeline(scheduler=scheduler, processor=TextProcessor(folder / "processor"), **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


class _TextPipeline(QwenImage21Pipeline):
    def register_modules(self, **modules: Any) -> None:
        """Registers the processor under the name of the class that it replaces; other classes are refused."""
        self.processor = modules.pop("processor")
        super().register_modules(**modules)
        self.register_to_config(processor=("transformers", "Qwen3VLProcessor"))


@torch.no_grad()
def draw(
    pipeline: QwenImage21Pipeline, captions: Sequence[str], seeds: Sequence[int], steps: int, height: int, width: int
) -> np.ndarray:
    """(n, height, width, 4) pixels in -1 .. 1, which may be non-finite."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents = pipeline(
        list(captions),
        height=height,
        width=width,
        num_inference_steps=steps,
        generator=generators,
        output_type="latent",
    ).images
    latents = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor).to(pipeline.vae.dtype)
    mean, std = (
        torch.tensor(values, device=latents.device, dtype=latents.dtype)[None, :, None, None, None]
        for values in (pipeline.vae.config.latents_mean, pipeline.vae.config.latents_std)
    )
    pixels = pipeline.vae.decode(latents * std + mean).sample[:, :, 0]
    return pixels.float().permute(0, 2, 3, 1).cpu().numpy()

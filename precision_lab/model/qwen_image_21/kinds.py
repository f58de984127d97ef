"""The classes that checkpoints of Qwen-Image-2.1 name."""

from __future__ import annotations

from precision_lab.model.text_to_image.kinds import Kinds
from precision_lab.model.text_to_image.scheduler import SCHEDULER

KINDS = Kinds(
    pipeline="QwenImage21Pipeline",
    supported="Qwen-Image-2.1, text to image,",
    classes={
        "scheduler": (SCHEDULER,),
        "text_encoder": ("Qwen3VLForConditionalGeneration", "Qwen3VLModel", "Qwen3VLTextModel"),
        "processor": ("Qwen3VLProcessor",),
        "transformer": ("QwenImage21Transformer2DModel",),
        "vae": ("AutoencoderKLQwenImage21",),
    },
    text_model_types=("qwen3_vl", "qwen3_vl_text"),
)

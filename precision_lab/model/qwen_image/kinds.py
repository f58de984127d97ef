"""The classes that checkpoints of Qwen-Image 1.x name."""

from __future__ import annotations

from precision_lab.model.text_to_image.kinds import Kinds
from precision_lab.model.text_to_image.scheduler import SCHEDULER

KINDS = Kinds(
    pipeline="QwenImagePipeline",
    supported="Qwen-Image 1.x, text to image,",
    classes={
        "scheduler": (SCHEDULER,),
        "text_encoder": ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel", "Qwen2_5_VLTextModel"),
        "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
        "transformer": ("QwenImageTransformer2DModel",),
        "vae": ("AutoencoderKLQwenImage",),
    },
    text_model_types=("qwen2_5_vl", "qwen2_5_vl_text"),
)

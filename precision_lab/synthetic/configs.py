"""The JSON files of a checkpoint, with the keys of the published files."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from precision_lab.synthetic import tokenizer
from precision_lab.synthetic.shape import Shape

DIFFUSERS_VERSION = "0.34.0"
"""Version in the published configurations, the lowest that has the classes."""


def model_index() -> dict[str, Any]:
    """model_index.json; the entry `_weights` marks the weights as synthetic."""
    return {
        "_class_name": "QwenImagePipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        "_weights": "synthetic",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "QwenImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLQwenImage"],
    }


def scheduler(shape: Shape) -> dict[str, Any]:
    """scheduler/scheduler_config.json."""
    return _diffusers("FlowMatchEulerDiscreteScheduler", asdict(shape.scheduler))


def transformer(shape: Shape) -> dict[str, Any]:
    """transformer/config.json, with the keys of the first release."""
    later = ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")
    values = {key: value for key, value in asdict(shape.transformer).items() if key not in later}
    return _diffusers("QwenImageTransformer2DModel", values)


def vae(shape: Shape) -> dict[str, Any]:
    """vae/config.json."""
    return _diffusers("AutoencoderKLQwenImage", {**asdict(shape.vae), "dropout": 0.0})


def text_encoder(shape: Shape) -> dict[str, Any]:
    """text_encoder/config.json, without nested sections, as in the published files."""
    text, vision = shape.text_encoder, shape.vision
    # the published sections are 16, 24 and 24 of the 64 frequencies of a head
    frequencies = text.head_dim // 2
    time = frequencies // 4
    height = (frequencies - time) // 2
    attention_step = max(1, vision.depth // 4)
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        **asdict(text),
        "initializer_range": 0.02,
        "max_position_embeddings": 128000,
        "max_window_layers": text.num_hidden_layers,
        "rope_scaling": {"type": "mrope", "mrope_section": [time, height, frequencies - time - height]},
        "sliding_window": 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "bos_token_id": tokenizer.token_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_id("<|im_end|>"),
        "image_token_id": tokenizer.token_id("<|image_pad|>"),
        "video_token_id": tokenizer.token_id("<|video_pad|>"),
        "vision_start_token_id": tokenizer.token_id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.token_id("<|vision_end|>"),
        "vision_token_id": tokenizer.token_id("<|vision_pad|>"),
        "vision_config": {
            **asdict(vision),
            "model_type": "qwen2_5_vl",
            "in_chans": vision.in_channels,
            "spatial_patch_size": vision.patch_size,
            "out_hidden_size": text.hidden_size,
            "hidden_act": "silu",
            "fullatt_block_indexes": list(range(attention_step - 1, vision.depth, attention_step)),
            "tokens_per_second": 2,
            "window_size": vision.patch_size * 8,
        },
    }


def _diffusers(kind: str, values: dict[str, Any]) -> dict[str, Any]:
    return {"_class_name": kind, "_diffusers_version": DIFFUSERS_VERSION, **values}

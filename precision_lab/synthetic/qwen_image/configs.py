"""The JSON files of a checkpoint of Qwen-Image 1.x, with the keys of the published files."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from precision_lab.model.qwen_image.config import TextEncoderConfig, TransformerConfig
from precision_lab.synthetic.configs import ends, special_tokens
from precision_lab.synthetic.qwen_image.text_encoder import VisionConfig
from precision_lab.synthetic.tokenizer import Vocabulary

DIFFUSERS_VERSION = "0.34.0"
"""Version in the published configurations, the lowest that has the classes."""

COMPONENTS = {
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "QwenImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLQwenImage"],
}
"""The library and the class of each component."""


def transformer(config: TransformerConfig) -> dict[str, Any]:
    """The values of transformer/config.json, with the keys of the first release."""
    later = ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")
    return {key: value for key, value in asdict(config).items() if key not in later}


def text_encoder(text: TextEncoderConfig, vision: VisionConfig, words: Vocabulary) -> dict[str, Any]:
    """text_encoder/config.json, without nested sections, as in the published files."""
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
        **ends(words),
        **special_tokens(words),
        "vision_token_id": words.special("<|vision_pad|>"),
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

"""The JSON files of a checkpoint of Qwen-Image-2.1, with the keys of the published files."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from precision_lab.model.qwen_image_21.config import TextEncoderConfig
from precision_lab.synthetic.configs import ends, special_tokens
from precision_lab.synthetic.qwen_image_21.text_encoder import VisionConfig
from precision_lab.synthetic.tokenizer import Vocabulary

DIFFUSERS_VERSION = "0.42.1"
"""The version that the classes were compared with."""

COMPONENTS = {
    "processor": ["transformers", "Qwen3VLProcessor"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3VLForConditionalGeneration"],
    "transformer": ["diffusers", "QwenImage21Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLQwenImage21"],
}
"""The library and the class of each component."""


def text_encoder(text: TextEncoderConfig, vision: VisionConfig, words: Vocabulary) -> dict[str, Any]:
    """text_encoder/config.json, with a section for the language body and one for the vision tower."""
    # the published sections are 24, 20 and 20 of the 64 frequencies of a head
    frequencies = text.head_dim // 2
    side = frequencies * 5 // 16
    values = asdict(text)
    theta = values.pop("rope_theta")
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "text_config": {
            **values,
            **ends(words),
            "attention_dropout": 0.0,
            "dtype": "bfloat16",
            "initializer_range": 0.02,
            "max_position_embeddings": 262144,
            "model_type": "qwen3_vl_text",
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": [frequencies - 2 * side, side, side],
                "rope_type": "default",
            },
            "rope_theta": theta,
            "use_cache": True,
        },
        "tie_word_embeddings": False,
        **special_tokens(words),
        "vision_config": {
            **asdict(vision),
            "hidden_act": "gelu_pytorch_tanh",
            "initializer_range": 0.02,
            "model_type": "qwen3_vl",
            "out_hidden_size": text.hidden_size,
        },
    }

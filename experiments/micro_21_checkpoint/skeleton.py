"""Writes the folder that training fills: configurations, processor, and initial weights of diffusers' and transformers'
classes.

    python -m experiments.micro_21_checkpoint.skeleton WORK

Writes WORK/checkpoint. The configurations are the published ones with smaller widths, and all 32 blocks.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage21, FlowMatchEulerDiscreteScheduler, QwenImage21Transformer2DModel
from transformers import AutoTokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from experiments.micro_21_checkpoint.prompt import SYSTEM_PROMPT
from precision_lab.model.qwen_image.prompt import TEMPLATE
from precision_lab.synthetic import tokenizer

SEED = 0

TRANSFORMER: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 32,
    "out_channels": 32,
    "num_layers": 32,
    "attention_head_dim": 32,
    "num_attention_heads": 3,
    "context_in_dim": 64,
    "mlp_ratio": 3,
    "axes_dims_rope": (4, 14, 14),
    "eps": 1e-6,
    "causal_condition": True,
}
"""32 blocks as published; RoPE's axes are the published (16, 56, 56) divided by four."""

VAE: dict[str, Any] = {
    "base_dim": 8,
    "decoder_base_dim": 12,
    "z_dim": TRANSFORMER["in_channels"],
    "latents_mean": [0.0] * TRANSFORMER["in_channels"],
    "latents_std": [1.0] * TRANSFORMER["in_channels"],
}
"""A twelfth of the published widths, 96 and 144, with the published levels."""

SCHEDULER: dict[str, Any] = {
    "shift": 1.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
}
"""Qwen-Image's. At 64 tokens the shift is exp(0.49), and the last of 20 times is 0.02."""

TEXT: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "dtype": "bfloat16",
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 192,
    "max_position_embeddings": 262144,
    "model_type": "qwen3_vl_text",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-6,
    "rope_scaling": {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"},
    "rope_theta": 5000000,
    "use_cache": True,
}
VISION: dict[str, Any] = {
    "deepstack_visual_indexes": [0, 1, 2],
    "depth": 3,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 16,
    "in_channels": 3,
    "initializer_range": 0.02,
    "intermediate_size": 32,
    "model_type": "qwen3_vl",
    "num_heads": 1,
    "num_position_embeddings": 16,
    "out_hidden_size": 64,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
"""Untrained: text-to-image never runs the vision tower."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The part of Qwen3-VL's chat template that the pipeline needs: roles, text, images and videos."""

WORDS = ("transparent", *SYSTEM_PROMPT.rstrip(".").split())
"""Words that the micro checkpoint's tokenizer lacks."""


def vocabulary() -> tokenizer.Vocabulary:
    """The micro checkpoint's vocabulary with every word of WORDS as one token, after a space or at a line's start.

    The new merges come last, so that text whose words were single tokens, such as the captions, is tokenised as before.
    """
    ids, merges = tokenizer.vocabulary(TEMPLATE)
    ids, added = dict(ids), list(merges)
    for word in WORDS:
        for text in (word, f"Ġ{word}"):
            symbols = list(text)
            for first, second in added:
                symbols = _merged(symbols, first, second)
            while len(symbols) > 1:
                first, second, *rest = symbols
                added.append((first, second))
                ids.setdefault(first + second, len(ids))
                symbols = [first + second, *rest]
    return tokenizer.Vocabulary(ids, tuple(added))


def _merged(symbols: list[str], first: str, second: str) -> list[str]:
    result: list[str] = []
    for symbol in symbols:
        if result and (result[-1], symbol) == (first, second):
            result[-1] += symbol
        else:
            result.append(symbol)
    return result


def write_processor(folder: Path) -> None:
    """The processor: tokenizer, chat template, and the settings of images and videos."""
    folder.mkdir(parents=True)
    tokenizer.write(folder, vocabulary(), processor_class="Qwen3VLProcessor")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    images = {
        "patch_size": VISION["patch_size"],
        "temporal_patch_size": VISION["temporal_patch_size"],
        "merge_size": VISION["spatial_merge_size"],
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }
    pictures = {
        "size": {"longest_edge": 16777216, "shortest_edge": 1024},
        "image_processor_type": "Qwen2VLImageProcessor",
    }
    videos = {
        "size": {"longest_edge": 25165824, "shortest_edge": 4096},
        "video_processor_type": "Qwen3VLVideoProcessor",
    }
    _write(folder / "preprocessor_config.json", images | pictures)
    _write(folder / "video_preprocessor_config.json", images | videos)


def write_text_encoder(folder: Path, processor: Path) -> None:
    """Qwen3-VL in the published layout, in bf16."""
    words = AutoTokenizer.from_pretrained(processor)
    size = -(-len(words) // 64) * 64
    special = {name: words.convert_tokens_to_ids(f"<|{name}|>") for name in ("im_end", "image_pad", "video_pad")}
    vision = {name: words.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": special["image_pad"],
        "model_type": "qwen3_vl",
        "text_config": TEXT
        | {"bos_token_id": words.pad_token_id, "eos_token_id": special["im_end"], "vocab_size": size},
        "tie_word_embeddings": False,
        "video_token_id": special["video_pad"],
        "vision_config": VISION,
        "vision_end_token_id": vision["vision_end"],
        "vision_start_token_id": vision["vision_start"],
    }
    folder.mkdir(parents=True)
    _write(folder / "config.json", config)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_pretrained(folder))
    model.bfloat16().save_pretrained(folder)
    _write(folder / "config.json", config)  # in the form of the published file, which all releases read
    (folder / "generation_config.json").unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    checkpoint = parser.parse_args().work / "checkpoint"
    torch.manual_seed(SEED)
    write_processor(checkpoint / "processor")
    write_text_encoder(checkpoint / "text_encoder", checkpoint / "processor")
    QwenImage21Transformer2DModel(**TRANSFORMER).bfloat16().save_pretrained(checkpoint / "transformer")
    AutoencoderKLQwenImage21(**VAE).bfloat16().save_pretrained(checkpoint / "vae")
    FlowMatchEulerDiscreteScheduler(**SCHEDULER).save_pretrained(checkpoint / "scheduler")
    components = {
        "processor": ("transformers", "Qwen3VLProcessor"),
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": ("transformers", "Qwen3VLForConditionalGeneration"),
        "transformer": ("diffusers", "QwenImage21Transformer2DModel"),
        "vae": ("diffusers", "AutoencoderKLQwenImage21"),
    }
    index = {"_class_name": "QwenImage21Pipeline", "_diffusers_version": "0.42.1", "_weights": "trained"}
    _write(checkpoint / "model_index.json", index | {"sample_sigmas": None} | components)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()

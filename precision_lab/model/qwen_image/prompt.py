"""The chat template of Qwen-Image 1.x."""

from __future__ import annotations

from pathlib import Path

from precision_lab.model.text_to_image import prompt
from precision_lab.model.text_to_image.prompt import Template

TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
# Number of template tokens before the prompt, a constant in diffusers (prompt_template_encode_start_idx).
PREFIX_TOKENS = 34


class Tokenizer(prompt.Tokenizer):
    """The tokenizer of a checkpoint, read from its `tokenizer` folder (see `text_to_image.prompt.Tokenizer`)."""

    def __init__(self, folder: Path):
        super().__init__(folder, Template(TEMPLATE, TEMPLATE.split("{}")[0], PREFIX_TOKENS, pads_left=False))

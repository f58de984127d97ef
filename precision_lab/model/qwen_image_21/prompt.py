"""The template of Qwen-Image-2.1, a raw text."""

from __future__ import annotations

from pathlib import Path

from precision_lab.model.text_to_image import prompt
from precision_lab.model.text_to_image.prompt import Template, Tokens

_SYSTEM = "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n"
TEMPLATE = _SYSTEM + "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


class Tokenizer(prompt.Tokenizer):
    """The tokenizer of a checkpoint, read from its `processor` folder (see `text_to_image.prompt.Tokenizer`).

    diffusers counts the system tokens in what the chat template gives; Qwen3-VL's template gives this text.
    """

    def __init__(self, folder: Path):
        super().__init__(folder, Template(TEMPLATE, _SYSTEM, None, pads_left=True))

    def __call__(self, prompts: list[str], padding: int = 0) -> Tokens:
        return super().__call__([prompt or " " for prompt in prompts], padding)

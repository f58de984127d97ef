"""The settings of a case of Qwen-Image-2.1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from precision_lab.errors import InputError
from precision_lab.model.text_to_image import settings


@dataclass(frozen=True)
class Settings(settings.Settings):
    """The settings of `text_to_image.settings.Settings`, by default without guidance, and one more.

    prefix_cache: how keys and values of the prompt are kept for all steps: in the dtype of the computation
    ("computed"), in another format, or not at all ("none"), so that every step computes text and image in one pass.
    diffusers keeps them as computed, from the second step on. There is no batched_guidance: the positions of the image
    follow those of the padded text, as in diffusers, so that a shorter text would be another function.
    """

    usually_guided: ClassVar[bool] = False

    guidance_scale: float = 1.0
    prefix_cache: Literal["computed", "none", "float32", "bfloat16", "float16"] = "computed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batched_guidance:
            raise InputError(
                "sampler.batched_guidance: in Qwen-Image-2.1 padding moves the image, which is another function. "
                "Leave it out"
            )

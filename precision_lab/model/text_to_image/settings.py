"""The settings of a case that all text-to-image models have, with the meaning that diffusers gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from precision_lab.errors import InputError, shown
from precision_lab.model.text_to_image.prompt import MAX_TOKENS
from precision_lab.model.text_to_image.scheduler import MAX_STEPS, SchedulerConfig, changed, explicit, sigmas

MAX_PIXELS = 16_384
"""The largest side of an image, ten times the largest recommended one; its latents alone are a million tokens."""


@dataclass(frozen=True)
class Settings:
    """Sampling settings of an image; height and width in pixels. Guidance is on if `guidance_scale` exceeds 1.

    - schedule: keys of scheduler_config.json that replace those of the checkpoint, such as `shift`.
    - sigmas: the noise levels of the steps, used as they are (diffusers would shift its argument of that name); 0 is
      appended. Their number is `steps`.
    - padding: tokens of padding after each prompt, masked, as a prompt has them in a batch with a longer one.
    - batched_guidance: whether both branches of a guided step are one batch, in which the shorter text is padded and
      masked, and not two forwards. The function is the same, and weights are read and decoded once a step. Only where
      the model allows it.

    Raises InputError for values out of range.
    """

    usually_guided: ClassVar[bool] = True
    """Whether the model is meant to be sampled with guidance."""

    steps: int = 10
    guidance_scale: float = 4.0
    negative_prompt: str = " "
    height: int = 128
    width: int = 128
    schedule: Annotated[Mapping[str, Any], "keys of scheduler_config.json, like {shift: 3.0}"] | None = None
    sigmas: Sequence[float] | None = None
    padding: int = 0
    batched_guidance: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            raise InputError(f"sampler.steps is {self.steps}, expected at least 1 and at most {MAX_STEPS}")
        for name in ("height", "width"):
            if not 1 <= getattr(self, name) <= MAX_PIXELS:
                raise InputError(f"image.{name} is {getattr(self, name)}, expected 1 to {MAX_PIXELS} pixels")
        if not isinstance(self.negative_prompt, str):
            raise InputError(
                f"sampler.negative_prompt is {self.negative_prompt!r}, expected text; guidance_scale=1 omits it"
            )
        if not 0 <= self.padding <= MAX_TOKENS:
            raise InputError(f"sampler.padding is {self.padding}, expected 0 to {MAX_TOKENS} tokens")
        if self.schedule is not None:
            changed(SchedulerConfig(), self.schedule)
        if self.sigmas is not None:
            count = len(explicit(self.sigmas)) - 1
            if count != self.steps:
                raise InputError(
                    f"sampler.sigmas has {count} noise levels and sampler.steps is {self.steps}, expected as many"
                )
            if self.schedule is not None:
                raise InputError("sampler.sigmas are used as they are, so sampler.schedule would have no effect")

    @property
    def guided(self) -> bool:
        return self.guidance_scale > 1

    def levels(self, scheduler: SchedulerConfig, num_tokens: int, asked: Sequence[float] | None = None) -> np.ndarray:
        """The noise levels of the steps and 0: (steps + 1,), fp32. num_tokens: that of the image.

        asked: the levels before the shift that the checkpoint states, if it states some.

        Raises InputError if the changed schedule does not fall, or if the checkpoint states another number of levels.
        """
        if self.sigmas is not None:
            return explicit(self.sigmas)
        if asked is not None and len(asked) != self.steps:
            raise InputError(
                f"sampler.steps is {self.steps}, but the checkpoint states {len(asked)} noise levels (sample_sigmas): "
                f"sampler.steps={len(asked)}, or others as sampler.sigmas"
            )
        return sigmas(changed(scheduler, self.schedule or {}), self.steps, num_tokens, asked)

    def remarks(self, prompts: Mapping[str, tuple[str, int]]) -> list[str]:
        """What a user should know of these settings. prompts: by their kind, each prompt and its number of tokens."""
        found = []
        if not self.guided and self.usually_guided:
            found.append(f"Guidance is off, because sampler.guidance_scale is {self.guidance_scale:g}, not above 1")
        if not self.guided and self.negative_prompt.strip():
            found.append(f"sampler.negative_prompt {shown(self.negative_prompt)} is ignored without guidance")
        if not self.guided and self.batched_guidance:
            found.append("sampler.batched_guidance is ignored without guidance")
        return found

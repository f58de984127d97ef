"""What the configurations of the VAEs have in common (see `autoencoder`)."""

from __future__ import annotations

from precision_lab.errors import InputError
from precision_lab.model.config import LARGEST, Config, short

_MOST_STAGES = 8
"""The largest number of stages of a VAE; each but one halves the sides of its input."""


class AutoencoderConfig(Config):
    """`vae/config.json`; a subclass declares the fields and their defaults."""

    base_dim: int
    z_dim: int
    dim_mult: tuple[int, ...]
    num_res_blocks: int
    temperal_downsample: tuple[bool, ...]
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.temperal_downsample) != len(self.dim_mult) - 1:
            raise InputError(
                f"temperal_downsample has {len(self.temperal_downsample)} entries and dim_mult {len(self.dim_mult)}, "
                "expected one fewer"
            )
        self.check_width("base_dim", self.base_dim)
        if not all(std > 0 for std in self.latents_std):
            raise InputError(f"latents_std holds {min(self.latents_std)}, expected numbers above 0")
        for key in ("latents_mean", "latents_std"):
            if len(getattr(self, key)) != self.z_dim:
                raise InputError(f"{key} has {len(getattr(self, key))} entries, expected z_dim {self.z_dim}")

    def check_width(self, key: str, base: int) -> None:
        """Raises InputError if `base`, the value of `key`, gives stages that are too many or too wide."""
        widest = base * max(self.dim_mult)
        if widest > LARGEST or len(self.dim_mult) > _MOST_STAGES:
            raise InputError(
                f"{key} {base} and dim_mult {short(list(self.dim_mult))} give "
                f"{len(self.dim_mult)} stages and {widest} channels, expected at most {_MOST_STAGES} and {LARGEST}"
            )

    def encoder_dims(self, base: int) -> list[int]:
        """Channels before and after each stage of an encoder with `base` channels."""
        return [base * m for m in (1, *self.dim_mult)]

    def decoder_dims(self, base: int) -> list[int]:
        """Channels before and after each stage of a decoder with `base` channels."""
        return [base * m for m in (self.dim_mult[-1], *reversed(self.dim_mult))]

    @property
    def scale_factor(self) -> int:
        """Pixels along one side of a latent."""
        return int(2 ** len(self.temperal_downsample))

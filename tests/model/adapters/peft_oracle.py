"""Adapters made with peft on the transformer of diffusers, and saved as other programs name them."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "to_add_out")
FEED_FORWARD = ("img_mlp.net.0.proj", "txt_mlp.net.2", "img_mod.1", "proj_out", "norm_out.linear", "img_in")
WRITERS = ("peft", "diffusers", "diffusers_old", "comfyui", "comfyui_model", "lightning", "kohya")


@dataclass
class Drawn:
    """An adapter with random factors: alpha and rank differ, and some modules have others."""

    seed: int
    targets: tuple[str, ...] = ATTENTION
    rank: int = 4
    alpha: float = 6.0
    rslora: bool = False
    ranks: dict[str, int] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    spread: float = 0.4

    @property
    def config(self) -> LoraConfig:
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=list(self.targets),
            use_rslora=self.rslora,
            rank_pattern=self.ranks,
            alpha_pattern=self.alphas,
        )

    def add(self, model: torch.nn.Module, name: str = "default") -> None:
        """Adds it to a model of diffusers and fills both factors."""
        model.add_adapter(self.config, name)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if f".{name}." in path:
                    parameter.normal_(generator=generator).mul_(self.spread * parameter.shape[1] ** -0.5)

    def tensors(self, model: torch.nn.Module, name: str = "default") -> dict[str, torch.Tensor]:
        """The factors by PATH.lora_A.weight and PATH.lora_B.weight."""
        found = get_peft_model_state_dict(model, adapter_name=name)
        return {key.removeprefix("base_model.model."): value.detach().contiguous() for key, value in found.items()}

    def scale(self, path: str) -> float:
        """The factor of the product at `path`."""
        rank = next((r for end, r in self.ranks.items() if path.endswith(end)), self.rank)
        alpha = next((a for end, a in self.alphas.items() if path.endswith(end)), self.alpha)
        return alpha / (rank**0.5 if self.rslora else rank)


def written(drawn: Drawn, tensors: dict[str, torch.Tensor], writer: str, folder: Path) -> Path:
    """Saves an adapter as `writer` names it; returns what `path` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "lora.safetensors"
    config = {key: list(value) if isinstance(value, set) else value for key, value in drawn.config.to_dict().items()}
    if writer == "peft":
        save_file(
            {f"base_model.model.{key}": value for key, value in tensors.items()}, folder / "adapter_model.safetensors"
        )
        (folder / "adapter_config.json").write_text(json.dumps(config, default=str))
        return folder
    if writer == "diffusers":
        metadata = {
            LORA_ADAPTER_METADATA_KEY: json.dumps({f"transformer.{k}": v for k, v in config.items()}, default=str)
        }
        save_file({f"transformer.{key}": value for key, value in tensors.items()}, file, metadata)
        return file
    found = {}
    for key, value in tensors.items():
        path, part = key.removesuffix(".weight").rsplit(".", 1)
        found[writer_name(writer, path, part)] = value
        if part == "lora_A":  # an alpha that gives the same scale with alpha / rank
            found[writer_name(writer, path, "alpha")] = torch.tensor(drawn.scale(path) * value.shape[0])
    save_file(found, file)
    return file


def writer_name(writer: str, path: str, part: str) -> str:
    """The name of a tensor: `part` is lora_A, lora_B or alpha."""
    parts = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight", "alpha": "alpha"}
    if writer == "diffusers_old":
        parts |= {"lora_A": "lora.down.weight", "lora_B": "lora.up.weight"}
    if writer == "comfyui_model":
        parts |= {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
    prefix = {
        "diffusers_old": "transformer.",
        "comfyui": "diffusion_model.",
        "comfyui_model": "model.diffusion_model.",
        "lightning": "",
        "kohya": "lora_unet_",
    }[writer]
    return prefix + (path.replace(".", "_") if writer == "kohya" else path) + "." + parts[part]

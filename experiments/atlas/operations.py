"""Kinds of operations by the names that Qwen-Image 1.x and 2.1 have for their modules."""

from __future__ import annotations

_BLOCK = r"transformer_blocks\.\d+"

KINDS = (
    ("residual stream", "transformer", rf"{_BLOCK}(\.(img|txt)_add[12])?", True),
    ("norm and modulation", "transformer", rf"{_BLOCK}\.(img|txt)_(norm|modulate)[12]", False),
    ("scales, shifts, gates", "transformer", rf"{_BLOCK}\.(img|txt)_(mod|gate[12])|modulation|split_modulation", False),
    ("q, k, v", "transformer", rf"{_BLOCK}\.attn\.(to_[qkv]|add_[qkv]_proj|(norm|rotary)_(added_)?[qk])", False),
    ("attention", "transformer", rf"{_BLOCK}\.attn\.attend(_prefix)?", False),
    ("attention, projected", "transformer", rf"{_BLOCK}\.attn\.to_(add_)?out(\.0)?", False),
    ("hidden layer", "transformer", rf"{_BLOCK}\.(img|txt)_mlp\.(net\.0\.gelu|multiply)", False),
    ("feed-forward", "transformer", rf"{_BLOCK}\.(img|txt)_mlp(\.out)?", False),
    ("time and embedders", "transformer", r"time_text_embed.*|img_in|txt_norm|txt_in.*", False),
    ("final norm, output", "transformer", r"norm_out.*|proj_out", False),
    ("text encoder", "text_encoder", r".*", False),
    ("VAE decoder", "vae", r"decoder.*", False),
)
"""Name, component, pattern of the path, and whether only outputs that are part of a stream count.

A block of 2.1 returns the keys and values of the prompt too, which are part of none.
"""

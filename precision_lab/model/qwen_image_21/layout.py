"""The layout of Qwen-Image-2.1: its components, blocks and its one stream, as a run needs them."""

from __future__ import annotations

from precision_lab.record.layout import Layout, Result, Stream


def layout(depth: int) -> Layout:
    """The layout of a checkpoint whose transformer has `depth` blocks.

    The stream holds text and image tokens; it has the name of the image stream of 1.x, as its operations have. In a
    pass of the prefix a block returns keys and values too, which are ports of their own: its result is at `out.0`.
    """
    return Layout(
        components=("transformer", "text_encoder", "vae", "pipeline"),
        default="transformer",
        result=Result("pipeline:euler_step", "latents"),
        picture="pipeline:to_pixels",
        blocks=("transformer:transformer_blocks.*", "text_encoder:layers.*"),
        depth=depth,
        streams={
            "img": Stream(
                "joint stream",
                sites="**.{img_*,txt_in,attn,norm_out,proj_out}",
                entry="img_in",
            ),
        },
        adds={
            "attention": "transformer_blocks.*.img_add1",
            "feed-forward": "transformer_blocks.*.img_add2",
        },
        branches={"cond": "with the prompt", "uncond": "with the negative prompt"},
        before=("text_encoder", "transformer"),  # the prefix
        exits=("norm_out", "proj_out"),
        level="noise level σ",
    )

"""The layout of Qwen-Image 1.x: its components, blocks and streams, as a run needs them."""

from __future__ import annotations

from precision_lab.record.layout import Layout, Result, Stream


def layout(depth: int) -> Layout:
    """The layout of a checkpoint whose transformer has `depth` blocks."""
    return Layout(
        components=("transformer", "text_encoder", "vae", "pipeline"),
        default="transformer",
        result=Result("pipeline:euler_step", "latents"),
        picture="pipeline:to_pixels",
        blocks=("transformer:transformer_blocks.*", "text_encoder:layers.*"),
        depth=depth,
        streams={
            "img": Stream(
                "image stream",
                port="out.0",
                sites="**.{img_*,to_{q,k,v},{norm,rotary}_{q,k},to_out,norm_out,proj_out}",
                entry="img_in",
            ),
            "txt": Stream(
                "text stream",
                port="out.1",
                sites="**.{txt_*,add_{q,k,v}_proj,{norm,rotary}_added_{q,k},to_add_out}",
                entry="txt_in",
            ),
        },
        joint="**.{attend,pos_embed}",
        adds={
            "attention": "transformer_blocks.*.{img,txt}_add1",
            "feed-forward": "transformer_blocks.*.{img,txt}_add2",
        },
        branches={"cond": "with the prompt", "uncond": "with the negative prompt"},
        before=("text_encoder",),
        exits=("norm_out", "proj_out"),
        level="noise level σ",
    )

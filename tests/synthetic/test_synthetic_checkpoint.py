"""The files of a generated checkpoint: layout, loading by diffusers and transformers, determinism, errors."""

from __future__ import annotations

import filecmp
import json
import logging
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import diffusers
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import load_file

from precision_lab.errors import InputError
from precision_lab.record import files
from precision_lab.synthetic import PRESETS, Shape, make
from precision_lab.synthetic.qwen_image.text_encoder import VisionConfig
from precision_lab.synthetic.tensors import Source
from tests.spread import thinned

MICRO = PRESETS["micro"]
SMALL = replace(MICRO, transformer=replace(MICRO.transformer, num_layers=3))
MODELS = {
    "transformer": diffusers.QwenImageTransformer2DModel,
    "vae": diffusers.AutoencoderKLQwenImage,
    "text_encoder": transformers.Qwen2_5_VLForConditionalGeneration,
}


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated") / "micro"
    make(MICRO, folder)
    return folder


def stored(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a component."""
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


@contextmanager
def warnings_of_loaders() -> Iterator[list[str]]:
    """The messages that diffusers and transformers log at level WARNING or above."""
    messages: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Collect(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield messages
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def test_the_folder_is_complete_and_small(micro: Path) -> None:
    files = {str(path.relative_to(micro)) for path in micro.rglob("*") if path.is_file()}
    assert files == {
        *("README.md", "model_index.json", "scheduler/scheduler_config.json"),
        *("tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json"),
        *("text_encoder/config.json", "text_encoder/model.safetensors"),
        *("transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"),
        *("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
    }
    assert sum((micro / name).stat().st_size for name in files) <= 24 * 2**20
    for part in MODELS:
        file = next((micro / part).glob("*.safetensors"))
        with safe_open(file, "np") as opened:
            assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize("part", MODELS)
def test_weights_are_bf16_and_fit_fp16(micro: Path, part: str) -> None:
    normal = count = 0
    for name, value in stored(micro / part).items():
        assert value.dtype == ml_dtypes.bfloat16, name
        magnitudes = np.abs(value.astype(np.float32))
        assert magnitudes.max() <= 4096, name
        normal += np.count_nonzero(magnitudes >= np.finfo(np.float16).smallest_normal)
        count += np.count_nonzero(magnitudes)
    assert normal > 0.98 * count


@pytest.mark.parametrize("part", MODELS)
def test_each_component_loads_without_missing_or_unknown_tensors(micro: Path, part: str) -> None:
    with warnings_of_loaders() as messages:
        _, info = MODELS[part].from_pretrained(micro, subfolder=part, output_loading_info=True)
    assert not any(info.values()), info
    assert messages == []


@pytest.mark.parametrize("dtype", thinned([torch.float32, torch.bfloat16], [torch.bfloat16]))
def test_the_pipeline_denoises_in_bounds(micro: Path, dtype: torch.dtype) -> None:
    rms = []

    def keep(pipeline: object, step: int, t: object, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        rms.append(state["latents"].float().square().mean().sqrt().item())
        return state

    with warnings_of_loaders() as messages:
        pipeline = diffusers.QwenImagePipeline.from_pretrained(micro, dtype=dtype)
    assert messages == []
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "two red circles on a blue background",
        negative_prompt=" ",
        true_cfg_scale=4.0,
        num_inference_steps=4,
        height=80,
        width=112,
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=keep,
        output_type="np",
    ).images[0]
    assert len(rms) == 4
    assert all(0.3 < value < 5 for value in rms)
    assert image.shape == (80, 112, 3)
    assert (image.std((0, 1)) > 0.05).all()
    assert ((image > 0) & (image < 1)).mean() > 0.8


def test_the_vae_encodes(micro: Path) -> None:
    model = diffusers.AutoencoderKLQwenImage.from_pretrained(micro, subfolder="vae")
    image = torch.rand((1, 3, 1, 32, 48), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = model.encode(image).latent_dist.mode()
    assert latents.shape == (1, 16, 1, 4, 6)
    assert 0.1 < latents.std() < 10


def test_the_card_states_seed_licence_and_biases(micro: Path) -> None:
    card = (micro / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "synthetic" in card.lower()
    assert "seed: 0" in card
    assert "| transformer_blocks.*.img_mlp.net.2.bias | 60 |" in card
    assert json.loads((micro / "model_index.json").read_text())["_weights"] == "synthetic"


def same_files(first: Path, second: Path) -> bool:
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(second)) for path in second.rglob("*") if path.is_file())
    return filecmp.cmpfiles(first, second, names, shallow=False)[0] == names


def test_seed_and_shape_determine_every_byte(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        make(SMALL, tmp_path / name, seed)
    assert same_files(tmp_path / "a", tmp_path / "b")
    a, c = stored(tmp_path / "a" / "transformer"), stored(tmp_path / "c" / "transformer")
    assert a.keys() == c.keys()
    assert not any(np.array_equal(a[name], c[name]) for name in a if name.endswith("weight"))


def test_a_block_depends_neither_on_depth_nor_on_shards(micro: Path, tmp_path: Path) -> None:
    make(replace(SMALL, max_shard_bytes=300_000), tmp_path / "sharded")
    folder = tmp_path / "sharded" / "transformer"
    deep, shallow = stored(micro / "transformer"), stored(folder)
    block = [name for name in shallow if name.startswith("transformer_blocks.1.")]
    assert len(block) == 32
    for name in block:
        np.testing.assert_array_equal(shallow[name], deep[name])


def test_shards_follow_the_published_naming_and_load(tmp_path: Path) -> None:
    make(SMALL, tmp_path / "whole")
    make(replace(SMALL, max_shard_bytes=200_000), tmp_path / "sharded")
    for part, stem in (("transformer", "diffusion_pytorch_model"), ("text_encoder", "model")):
        folder = tmp_path / "sharded" / part
        index = json.loads((folder / f"{stem}.safetensors.index.json").read_text())
        files = sorted(path.name for path in folder.glob("*.safetensors"))
        assert files == [f"{stem}-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
        assert len(files) > 1
        whole = stored(tmp_path / "whole" / part)
        assert index["weight_map"].keys() == whole.keys()
        assert index["metadata"]["total_size"] == sum(value.nbytes for value in whole.values())
        for name, value in stored(folder).items():
            np.testing.assert_array_equal(value, whole[name])
        for name, file in index["weight_map"].items():
            with safe_open(folder / file, "np") as opened:
                assert name in opened.keys()  # noqa: SIM118 (safe_open is no mapping)
        _, info = MODELS[part].from_pretrained(tmp_path / "sharded", subfolder=part, output_loading_info=True)
        assert not any(info.values()), info


def test_full_is_the_published_model() -> None:
    generated = PRESETS["full"].tensors(Source(0))
    shapes = {part: {tensor.name: tensor.shape for tensor in tensors} for part, tensors in generated.items()}
    counts = {part: sum(int(np.prod(shape)) for shape in named.values()) for part, named in shapes.items()}
    assert counts == {"transformer": 20_430_401_088, "text_encoder": 8_292_166_656, "vae": 126_892_531}
    with torch.device("meta"):
        for part in ("transformer", "vae"):
            reference = MODELS[part]().state_dict()
            assert shapes[part] == {name: tuple(value.shape) for name, value in reference.items()}


@pytest.mark.parametrize(
    "shape",
    [
        replace(
            SMALL,
            transformer=replace(
                SMALL.transformer,
                num_layers=1,
                num_attention_heads=3,
                attention_head_dim=20,
                axes_dims_rope=(4, 8, 8),
                joint_attention_dim=48,
            ),
            text_encoder=replace(SMALL.text_encoder, hidden_size=48, num_attention_heads=4, num_key_value_heads=2),
        ),
        replace(
            SMALL,
            vae=replace(SMALL.vae, base_dim=4, num_res_blocks=2, attn_scales=(0.5,)),
            vision=VisionConfig(depth=2, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=4),
        ),
    ],
    ids=["odd widths", "other vae and vision"],
)
def test_other_shapes_load_too(tmp_path: Path, shape: Shape) -> None:
    make(shape, tmp_path / "generated")
    for part, kind in MODELS.items():
        _, info = kind.from_pretrained(tmp_path / "generated", subfolder=part, output_loading_info=True)
        assert not any(info.values()), info


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    make(SMALL, tmp_path / "generated", progress=lambda done, total: calls.append((done, total)))
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert calls[-1][0] == calls[-1][1] == calls[0][1]


def test_an_empty_folder_is_used_and_a_filled_one_rejected(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    make(SMALL, out)
    assert (out / "model_index.json").is_file()
    with pytest.raises(InputError, match="expected a new or an empty folder"):
        make(SMALL, out)
    with pytest.raises(InputError, match="expected a new or an empty folder"):
        make(SMALL, out / "README.md")


def test_an_unwritable_place_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write there"):
        make(SMALL, tmp_path / "file" / "out")


def test_a_full_disk_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = files.shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"needs 57\.\d+ GB, but its disk has 1\.00 GB free"):
        make(PRESETS["full"], tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(SMALL, tmp_path / "out", progress=interrupt)
    assert not any(tmp_path.iterdir())


def test_errors_name_the_impossible_setting(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seed -1, expected 0 or more"):
        make(SMALL, tmp_path / "out", seed=-1)
    with pytest.raises(InputError, match="vocab_size 300, but the tokenizer has"):
        make(replace(SMALL, text_encoder=replace(SMALL.text_encoder, vocab_size=300)), tmp_path / "out")
    with pytest.raises(InputError, match="joint_attention_dim 32, but text_encoder hidden_size 64"):
        replace(MICRO, transformer=replace(MICRO.transformer, joint_attention_dim=32))
    with pytest.raises(InputError, match=r"growth 0\.9"):
        replace(MICRO, growth=0.9)
    with pytest.raises(InputError, match=r"growth 1\.9 over 60 blocks"):
        replace(MICRO, growth=1.9)
    with pytest.raises(InputError, match="in_channels 32"):
        replace(MICRO, transformer=replace(MICRO.transformer, in_channels=32))
    with pytest.raises(InputError, match="heads of a multiple of 4"):
        VisionConfig(hidden_size=10, num_heads=2)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["", "_21"])
def test_full_width_holds_less_than_a_gibibyte_a_worker(tmp_path: Path, model: str) -> None:
    full = PRESETS[f"full{model}"]
    shape = replace(
        full,
        transformer=replace(full.transformer, num_layers=1),
        text_encoder=replace(full.text_encoder, num_hidden_layers=1),
        vision=PRESETS[f"micro{model}"].vision,
    )
    # NumPy reports its arrays to tracemalloc; the resident peak of a process would include memory of its parent
    tracemalloc.start()
    try:
        make(shape, tmp_path / "generated", workers=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * 0.7 * 2**30

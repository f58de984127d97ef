"""`model.path` with the weights of the transformer alone; the other components come from `model.base`."""

import shutil

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from safetensors.numpy import load_file

from precision_lab.cli import main
from precision_lab.errors import InputError
from precision_lab.instrument.sites import walk
from precision_lab.model.casting import cast
from precision_lab.model.coded import CodedLinear
from precision_lab.model.codings.int8 import Int8
from precision_lab.model.stored.locating import lone_weights
from precision_lab.record.origin import UNKNOWN
from precision_lab.synthetic.source import QwenImage, QwenImage21


def q8_file(folder, path):
    """The transformer of a checkpoint as gguf-py writes it in Q8_0, vectors in fp32."""
    writer = gguf.GGUFWriter(path, "qwen_image")
    for name, array in load_file(next((folder / "transformer").glob("*.safetensors"))).items():
        wide = array.astype(np.float32)
        if wide.ndim == 2:
            q8 = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(wide, q8), raw_dtype=q8)
        else:
            writer.add_tensor(name, wide)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def velocity(source, dtype=mx.float32):
    subject = source.load(dtype)
    pipeline = subject.pipeline
    config = source.opened.transformer_config()
    mx.random.seed(3)
    text = mx.random.normal((1, 5, config.joint_attention_dim)).astype(dtype)
    latents = mx.random.normal((1, 6, config.in_channels)).astype(dtype)
    grid = pipeline.grid(32, 48)
    return pipeline.transformer(latents, mx.array([0.7]), text, grid)


def refusal(action) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


def test_a_folder_with_the_transformer_alone_computes_the_same(small_checkpoint, tmp_path):
    shutil.copytree(small_checkpoint / "transformer", tmp_path / "alone")
    whole = QwenImage(path=str(small_checkpoint))
    alone = QwenImage(path=str(tmp_path / "alone"), base=str(small_checkpoint))
    assert mx.array_equal(velocity(alone), velocity(whole))
    assert alone.checkpoint.fingerprint == whole.checkpoint.fingerprint
    assert alone.checkpoint.weights == UNKNOWN


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_gguf_file_stays_packed_and_streams_with_the_same_bits(small_checkpoint, tmp_path, dtype):
    path = str(q8_file(small_checkpoint, tmp_path / "q8.gguf"))
    source = QwenImage(path=path, base=str(small_checkpoint))
    expected = velocity(source, dtype)
    coded = [
        site
        for site in walk({"transformer": source.load(dtype).pipeline.transformer})
        if isinstance(site.module, CodedLinear)
    ]
    assert len(coded) > 4 * 10
    assert mx.array_equal(velocity(QwenImage(path=path, base=str(small_checkpoint), stream=True), dtype), expected)
    assert mx.isfinite(expected).all()


def test_casts_leave_the_arrays_of_coded_weights():
    """Codes and fp32 scales keep their dtype, and the bias does not."""
    holder = nn.Module()
    holder.linear = CodedLinear.encoded(Int8(), mx.random.normal((4, 32)), mx.zeros((4,)))
    before = holder.linear.arrays
    cast(holder, mx.bfloat16, mx.float16)
    assert holder.linear.bias.dtype == mx.float16
    for name, array in holder.linear.arrays.items():
        assert array.dtype == before[name].dtype
        assert mx.array_equal(array, before[name])
    assert {array.dtype for array in before.values()} == {mx.int8, mx.float32}


def test_weights_alone_need_a_base_of_their_model(small_checkpoint, small_checkpoint_21, tmp_path):
    path = str(q8_file(small_checkpoint, tmp_path / "q8.gguf"))
    assert "model.base" in refusal(lambda: QwenImage(path=path).opened)
    assert "weights alone" in refusal(lambda: QwenImage(path=path, base=path).opened)
    other = refusal(lambda: QwenImage21(path=path, base=str(small_checkpoint_21)).load(mx.float32))
    assert path in other
    assert "QwenImagePipeline" in other
    assert "60" in refusal(lambda: QwenImage(path=path, base="package://micro").load(mx.float32))


def test_other_files_are_refused_by_name(tmp_path, capsys):
    for name, content in (
        ("x.bin", b"\x80\x02"),
        ("x.ckpt", b"SQLite format 3\0"),
        ("x.gguf", b"GGUF"),
        ("y.gguf", b""),
    ):
        (tmp_path / name).write_bytes(content)
        assert main([f"model.path={tmp_path / name}"]) == 2
        assert name in capsys.readouterr().err


def test_what_mflux_saves_without_an_index(small_checkpoint, tmp_path):
    for part in ("transformer", "text_encoder", "vae"):
        shutil.copytree(small_checkpoint / part, tmp_path / "saved" / part)
    assert set(lone_weights(str(tmp_path / "saved"))) == {"transformer", "text_encoder"}
    source = QwenImage(path=str(tmp_path / "saved"), base=str(small_checkpoint))
    assert mx.array_equal(velocity(source), velocity(QwenImage(path=str(small_checkpoint))))

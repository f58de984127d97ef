"""The reader of GGUF files, against gguf's."""

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.model.codings.gguf.small import Q8_0
from precision_lab.model.stored.gguf import FORMATS, GgufFile
from tests.model.stored_files import fp32, gguf_values, micro_tensors, write_gguf

KEPT = ("img_in.weight", "proj_out.weight")


@pytest.fixture(scope="module")
def tensors():
    return {name: tensor for name, tensor in micro_tensors().items() if "blocks" not in name or "blocks.0." in name}


@pytest.fixture(scope="module")
def stored(tmp_path_factory, tensors):
    file = tmp_path_factory.mktemp("gguf") / "micro-Q8_0.gguf"
    write_gguf(file, tensors, "Q8_0", KEPT)
    return file


def test_tensors_are_those_that_gguf_reads(stored, tensors):
    opened = GgufFile.open(stored)
    expected, read = gguf_values(stored), opened.read()
    assert read.keys() == expected.keys() == opened.shapes().keys() == opened.extents().keys() == tensors.keys()
    for name, values in expected.items():
        path = name.removesuffix(".weight")
        array = read[name]
        if path in opened.linears and name.endswith(".weight"):
            linear = opened.linears[path]
            assert (linear.storage, linear.arrays) == (Q8_0(), ("weight",))
            assert linear.shape == opened.shapes()[name] == values.shape
            array = linear.storage.decode({"weight": array})
        else:
            assert array.dtype == (mx.bfloat16 if name in KEPT else mx.float32)
        np.testing.assert_array_equal(fp32(array), values)
    assert len(opened.linears) == sum(tensor.ndim == 2 for tensor in tensors.values()) - len(KEPT)


def test_a_tensor_is_read_when_it_is_taken_and_let_go_when_it_is_removed(stored):
    read = GgufFile.open(stored).read()
    names = list(read)
    taken = read.pop(names[0])
    assert names[0] not in read
    assert len(read) == len(names) - 1
    assert read[names[1]] is read[names[1]]
    read[names[0]] = taken
    assert sorted(read) == sorted(names)


def test_templates_of_paged_blocks_have_the_shapes_of_what_is_read(stored):
    opened = GgufFile.open(stored)
    read, templates = opened.read(), opened.templates("transformer_blocks.")
    for name in read:
        assert (templates[name].shape, templates[name].dtype) == (read[name].shape, read[name].dtype)
        if not name.startswith("transformer_blocks."):
            np.testing.assert_array_equal(fp32(templates[name]), fp32(read[name]))


def test_a_block_format_that_is_no_weight_of_a_linear_is_decoded(tmp_path, tensors):
    torch_tensor = tensors["transformer_blocks.0.attn.to_q.weight"]
    write_gguf(tmp_path / "a.gguf", {"table": torch_tensor}, "Q5_1")
    opened = GgufFile.open(tmp_path / "a.gguf")
    assert not opened.linears
    np.testing.assert_array_equal(fp32(opened.read()["table"]), gguf_values(tmp_path / "a.gguf")["table"])
    assert opened.templates("tab")["table"].shape == tuple(torch_tensor.shape)


def test_the_shape_that_a_writer_flattened_is_restored(tmp_path, tensors):
    bias = tensors["transformer_blocks.0.attn.to_q.bias"]
    shape = {"comfy__gguf__orig_shape__scale": [2, 4, 8]}
    write_gguf(tmp_path / "a.gguf", {"scale": bias}, **shape)
    opened = GgufFile.open(tmp_path / "a.gguf")
    assert opened.shapes() == {"scale": (2, 4, 8)}
    assert opened.read()["scale"].shape == (2, 4, 8)
    for wrong in ([2, 4, 9], [-2, -32], [0]):
        write_gguf(tmp_path / "b.gguf", {"scale": bias}, comfy__gguf__orig_shape__scale=wrong)
        with pytest.raises(InputError, match=r"b\.gguf: comfy\.gguf\.orig_shape\.scale is .*, but its tensor has"):
            GgufFile.open(tmp_path / "b.gguf")


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model."])
def test_a_prefix_that_all_names_have_is_left_out(tmp_path, tensors, prefix):
    names = ["transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.attn.to_q.bias"]
    write_gguf(tmp_path / "a.gguf", {prefix + name: tensors[name] for name in names})
    opened = GgufFile.open(tmp_path / "a.gguf")
    assert [*opened.read()] == [*opened.extents()] == names
    assert [*opened.linears] == ["transformer_blocks.0.attn.to_q"]
    write_gguf(tmp_path / "b.gguf", {prefix + names[0]: tensors[names[0]], names[1]: tensors[names[1]]})
    with pytest.raises(InputError, match=r"b\.gguf: tensor transformer_blocks\.0\.attn\.to_q\.bias has no prefix"):
        GgufFile.open(tmp_path / "b.gguf")


def test_another_architecture_and_a_type_that_is_not_read_are_refused(tmp_path, tensors):
    one = {"a.weight": tensors["transformer_blocks.0.attn.to_q.weight"]}
    write_gguf(tmp_path / "a.gguf", one, architecture="flux")
    with pytest.raises(InputError, match=r"a\.gguf: general\.architecture is 'flux', expected 'qwen_image'"):
        GgufFile.open(tmp_path / "a.gguf")
    write_gguf(tmp_path / "c.gguf", one, architecture="qwen_image_edit")
    assert GgufFile.open(tmp_path / "c.gguf").metadata["general.architecture"] == "qwen_image_edit"
    unnamed = (tmp_path / "c.gguf").read_bytes().replace(b"general.architecture", b"general.architectura")
    (tmp_path / "d.gguf").write_bytes(unnamed)
    assert [*GgufFile.open(tmp_path / "d.gguf").linears] == ["a"]
    write_gguf(tmp_path / "b.gguf", one, "MXFP4")
    with pytest.raises(InputError, match=r"b\.gguf: tensor a\.weight is MXFP4, which is not read, expected F32, F16"):
        GgufFile.open(tmp_path / "b.gguf")


def test_a_file_that_shrinks_after_it_was_opened_is_an_input_error(tmp_path, tensors):
    file = tmp_path / "a.gguf"
    write_gguf(file, {"a.weight": tensors["transformer_blocks.0.attn.to_q.weight"]})
    read = GgufFile.open(file).read()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"a\.gguf: tensor a\.weight cannot be read"):
        read["a.weight"]


def test_all_formats_are_listed_by_their_number():
    assert len(FORMATS) == 10
    assert all(number == form.number for number, form in FORMATS.items())

"""Headers of GGUF files against gguf's writer and reader, and headers that are damaged."""

import struct
import time
import tracemalloc

import gguf
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.record.gguf import KEPT, TYPES, is_gguf, read_header


def write(file, alignment=None):
    """A file with every kind of metadata and tensors of several types; returns the metadata and the tensors."""
    rng = np.random.default_rng(2)
    writer = gguf.GGUFWriter(file, "qwen_image")
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_uint8("a.u8", 200)
    writer.add_int16("a.i16", -3)
    writer.add_uint64("a.u64", 1 << 60)
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "größer")
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.texts", [f"token {i}" for i in range(100)])
    writer.add_array("a.floats", [0.5] * 1000)
    tensors = {}
    for name, shape, kind in (
        ("bias", (48,), "F32"),
        ("half", (3, 5), "F16"),
        ("blocks", (6, 64), "Q8_0"),
        ("super", (2, 512), "Q4_K"),
        ("brain", (4, 7), "BF16"),
    ):
        number = gguf.GGMLQuantizationType[kind]
        values = rng.standard_normal(shape).astype(np.float32)
        if kind == "Q4_K":
            values = rng.integers(0, 256, (shape[0], shape[1] // 256 * 144), dtype=np.uint8)
            writer.add_tensor(name, values, raw_dtype=number)
        elif kind in ("F32", "F16"):
            values = values.astype(kind.replace("F", "float"))
            writer.add_tensor(name, values)
        else:
            values = gguf.quants.quantize(values, number)
            writer.add_tensor(name, values, raw_dtype=number)
        tensors[name] = (shape, kind, values.tobytes())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    file = tmp_path_factory.mktemp("gguf") / "a.gguf"
    return file, write(file)


def test_types_are_those_of_gguf():
    assert {
        int(kind): (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType if kind in TYPES
    } == TYPES
    assert len(TYPES) >= 31


@pytest.mark.parametrize("alignment", [None, 64, 4096])
def test_what_gguf_writes_is_read(tmp_path, alignment):
    file = tmp_path / "a.gguf"
    tensors = write(file, alignment)
    header = read_header(file)
    assert is_gguf(file)
    assert header.tensors.keys() == tensors.keys()
    for name, (shape, kind, content) in tensors.items():
        tensor = header.tensors[name]
        assert (tensor.shape, TYPES[tensor.kind][0]) == (shape, kind)
        assert file.read_bytes()[tensor.begin : tensor.begin + tensor.size] == content
    theirs = {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items() if "GGUF." not in name}
    assert header.metadata.keys() == theirs.keys()
    for key, value in theirs.items():
        ours = header.metadata[key]
        assert ours == (tuple(value[:KEPT]) if isinstance(value, list) else value), key


def patched(content, old, new):
    assert content.count(old) == 1
    return content.replace(old, new)


def text(name):
    return struct.pack("<Q", len(name)) + name.encode()


def bias(rank=1, size=48, kind=0, offset=0):
    """The entry of the tensor `bias`."""
    return text("bias") + struct.pack("<IQIQ", rank, size, kind, offset)


def other(**changes):
    """Replaces the entry of `bias`."""
    return lambda content: patched(content, bias(), bias(**changes))


MISTAKES = [
    (lambda c: c[:10], "not a GGUF file, or truncated at 10 bytes"),
    (lambda c: b"GGML" + c[4:], "not a GGUF file"),
    (lambda c: c[:4] + struct.pack("<I", 1) + c[8:], "GGUF version 1, expected 2 or 3"),
    (lambda c: c[:4] + struct.pack(">I", 3) + c[8:], "expected 2 or 3. It is big-endian"),
    (lambda c: c[:8] + struct.pack("<Q", 1 << 62) + c[16:], f"{1 << 62} tensors, more than its bytes can hold"),
    (lambda c: c[:16] + struct.pack("<Q", 1 << 40) + c[24:], "metadata entries, more than its bytes can hold"),
    (lambda c: patched(c, text("a.u8"), struct.pack("<Q", 1 << 50) + b"a.u8"), "metadata entry .* a text of"),
    (lambda c: patched(c, text("a.i16"), struct.pack("<Q", 5) + b"a.i1\xff"), "not UTF-8"),
    (
        lambda c: patched(c, text("a.bool") + b"\7", text("a.bool") + b"\77"),
        r"metadata a\.bool: its type has the",
    ),
    (lambda c: patched(c, text("a.numbers") + b"\x09\0\0\0", text("a.numbers") + b"\x09\0\0\0\x09"), "array of type"),
    (lambda c: patched(c, text("brain"), text("super")), "tensor super: it is there twice"),
    (lambda c: patched(c, text("a.f32"), text("a.f64")), r"metadata a\.f64: it is there twice"),
    (other(rank=9), "tensor bias: it has 9 dimensions"),
    (other(size=0), "tensor bias: it has the shape"),
    (other(size=1 << 60), "tensor bias: it has the shape"),
    (other(kind=99), "bias: its type has the unknown num"),
    (other(kind=12), "48 values, .* of 256 in Q4_K"),
    (other(offset=7), "its offset 7 is not a multiple of"),
    (other(offset=1 << 40), "truncated: .* but tensor bias"),
    (other(size=64), "tensor half: it overlaps tensor bias"),
    (lambda c: c[:-40], "truncated: .* but tensor brain ends at"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_a_malformed_header_is_refused_by_name(stored, tmp_path, change, message):
    file = tmp_path / "b.gguf"
    file.write_bytes(change(stored[0].read_bytes()))
    with pytest.raises(InputError, match=message) as caught:
        read_header(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_alignment_that_is_none_is_refused(tmp_path):
    file = tmp_path / "a.gguf"
    write(file, 64)
    content = file.read_bytes()
    key = text("general.alignment") + struct.pack("<I", 4)
    for bad in (0, 48, 1 << 31):
        file.write_bytes(patched(content, key + struct.pack("<I", 64), key + struct.pack("<I", bad)))
        with pytest.raises(InputError, match=r"general\.alignment: it is \d+, expected a power of two"):
            read_header(file)


def test_a_header_without_an_end_is_refused_quickly(tmp_path):
    """A file of many gigabytes whose header claims a text for every eight of them."""
    file = tmp_path / "a.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 8, 1 << 30)
    with file.open("wb") as opened:
        opened.write(head)
        opened.truncate(1 << 34)
    with pytest.raises(InputError, match="metadata a: 1073741824 texts, more than its bytes can hold"):
        read_header(file)


def test_damaged_headers_give_one_line_or_a_header_within_the_file(stored, tmp_path):
    rng = np.random.default_rng(11)
    content = stored[0].read_bytes()
    data = read_header(stored[0]).tensors["bias"].begin
    file = tmp_path / "c.gguf"
    messages = []
    tracemalloc.start()
    begun = time.perf_counter()
    for trial in range(400):
        damaged = bytearray(content)
        if trial % 4 == 0:
            damaged = damaged[: rng.integers(0, len(damaged))]
        elif trial % 4 == 1:
            at = int(rng.integers(4, data - 8))
            damaged[at : at + 8] = struct.pack("<Q", int(rng.integers(0, 1 << 63)) >> int(rng.integers(0, 63)))
        else:
            for at in rng.integers(4, data, 1 + trial % 5):
                damaged[at] = rng.integers(0, 256)
        file.write_bytes(damaged)
        try:
            header = read_header(file)
        except InputError as error:
            messages.append(str(error))
        else:
            assert all(t.begin + t.size <= len(damaged) for t in header.tensors.values())
    assert len(messages) > 200
    assert all(message.startswith(str(file)) and "\n" not in message for message in messages)
    assert tracemalloc.get_traced_memory()[1] < 1 << 27
    tracemalloc.stop()
    assert time.perf_counter() - begun < 60


def test_what_is_no_file_is_an_input_error(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        assert not is_gguf(path)
        with pytest.raises(InputError, match="cannot be read"):
            read_header(path)

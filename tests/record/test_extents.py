"""Where the header of a safetensors file says that its tensors are, against the file."""

import json
import struct

import pytest

from precision_lab.errors import InputError
from precision_lab.model.headers import check_header
from precision_lab.model.stored.comfyui import ComfyFile
from precision_lab.record.safetensors import check_extents, read_entries

WIDTHS = {"F32": 4, "F16": 2}


def file_of(tmp_path, extents, size, dtype="F32"):
    """A file of `size` bytes of data with a tensor (2, 3) at each extent; the names end in an ordinary parameter's."""
    header = {
        f"img_in.{name}": {"dtype": dtype, "shape": [2, 3], "data_offsets": list(extent)}
        for name, extent in extents.items()
    }
    content = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(content)) + content + bytes(size))
    return path


def both(path):
    """The messages of the check itself and of the reader of checkpoints."""
    found = []
    for check in (lambda: check_extents(path, read_entries(path)[0], WIDTHS), lambda: check_header(path)):
        with pytest.raises(InputError) as caught:
            check()
        found.append(str(caught.value))
    return found


def test_tensors_side_by_side_in_any_order_pass(tmp_path):
    path = file_of(tmp_path, {"b": (0, 24), "a": (24, 48)}, 48)
    check_extents(path, read_entries(path)[0], WIDTHS)
    assert set(check_header(path).tensors) == {"img_in.a", "img_in.b"}


@pytest.mark.parametrize("second", [(0, 24), (20, 44), (8, 32)])
def test_two_tensors_that_overlap_are_both_named(tmp_path, second):
    path = file_of(tmp_path, {"a": (0, 24), "b": second}, 48)
    for message in both(path):
        assert message == f"{path}: tensors img_in.a and img_in.b overlap"
    with pytest.raises(InputError, match="overlap"):
        ComfyFile.open(path)


@pytest.mark.parametrize("extent", [(0, 20), (0, 28), (4, 4)])
def test_an_extent_that_is_not_that_of_the_shape_is_named(tmp_path, extent):
    for message in both(file_of(tmp_path, {"a": extent}, 48)):
        assert "tensor img_in.a of shape (2, 3) has" in message
        assert message.endswith("expected 24")


def test_a_tensor_that_the_file_cuts_off_is_named(tmp_path):
    path = file_of(tmp_path, {"a": (0, 24), "b": (24, 48)}, 40)
    size = path.stat().st_size
    for message in both(path):
        assert message == f"{path}: truncated: {size} bytes, but tensor img_in.b ends at {size + 8}"

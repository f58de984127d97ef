"""Puts numbers that are not finite into files of weights, and expects that they are refused."""

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.model.stored.reading import open_weights

WRONG = {"F16": (0x7C00, 0xFC00, 0x7E00, 0x7C01), "BF16": (0x7F80, 0xFFC0), "F32": (0x7F800000, 0xFFC00000)}
WRONG |= {"F8_E4M3": (0x7F, 0xFF), "F8_E8M0": (0xFF,)}
FINITE = {
    "F16": (0x7BFF, 0xFBFF),
    "BF16": (0x7F7F, 0x80),
    "F32": (0x7F7FFFFF, 0x8000),
    "F8_E4M3": (0x7E, 0),
    "F8_E8M0": (0xFE, 0),
}
BYTES = {"F16": "<u2", "BF16": "<u2", "F32": "<u4", "F8_E4M3": "u1", "F8_E8M0": "u1"}


def patch(extent, index, bits, kind, size=None, offset=0):
    """Writes the bits of a number into a block of a tensor."""
    form = np.dtype(BYTES[kind])
    with extent.file.open("r+b") as file:
        file.seek(extent.offset + index * (size or form.itemsize) + offset)
        file.write(np.array(bits, form).tobytes())


def check_refused(source, name, block, said):
    """Taking the tensor is refused each time, the others and templates of a paged block are not."""
    files = open_weights(source)
    for tensors in (files.read(), files.read()):
        with pytest.raises(InputError) as caught:
            tensors[name]
        assert str(caught.value).startswith(f"{files.extents()[name].file}: tensor {said} has the scale ")
        assert f"in block {block}, expected a finite number" in str(caught.value)
        assert all(isinstance(tensors[other], mx.array) for other in tensors if other != name)
    assert name in dict(files.templates("transformer_blocks."))


def check_array(source, name, kind, said):
    """Each number that is not finite is found in an array of scales, and the largest and the least are none."""
    extent = open_weights(source).extents()[name]
    count = extent.nbytes // np.dtype(BYTES[kind]).itemsize
    for block, bits in zip((0, count - 1), (WRONG[kind][0], WRONG[kind][-1]), strict=True):
        before = extent.file.read_bytes()
        for i, fine in enumerate(FINITE[kind]):
            patch(extent, (block + 1 + i) % count, fine, kind)
        open_weights(source).read()[name]
        patch(extent, block, bits, kind)
        check_refused(source, name, block, said)
        extent.file.write_bytes(before)

"""Writes the bytes that ggml's own encoder makes of the weights of `adversarial`.

    pip install xllamacpp==2026.10.11549    (in an environment of its own: a build of llama.cpp that exports ggml)
    python -m tests.model.codings.ggml_reference .../site-packages/xllamacpp/xllamacpp.abi3.so

The library is compiled for x86-64 without fused multiply-adds; ggml compiled with them chooses other codes in some
groups.
"""

import ctypes
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.model.codings.adversarial import weights

FILE = Path(__file__).with_name("ggml_reference.safetensors")
TYPES = {"q2_k": 10, "q3_k": 11, "q4_k": 12, "q5_k": 13, "q6_k": 14}


def encoder(library):
    """A function of a type's number and weights (rows, channels) to bytes (rows, bytes of a row)."""
    ggml = ctypes.CDLL(library)
    ggml.ggml_row_size.restype = ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def encode(number, tensor):
        rows, channels = tensor.shape
        source = np.ascontiguousarray(tensor, np.float32)
        target = np.zeros((rows, ggml.ggml_row_size(number, channels)), np.uint8)
        written = ggml.ggml_quantize_chunk(number, source.ctypes.data, target.ctypes.data, 0, rows, channels, None)
        assert written == target.nbytes
        return target

    return encode


if __name__ == "__main__":
    encode = encoder(sys.argv[1])
    save_file({f"{name}/{case}": encode(n, x) for name, n in TYPES.items() for case, x in weights().items()}, FILE)

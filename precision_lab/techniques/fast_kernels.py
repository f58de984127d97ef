"""Fused operations of a transformer block: one pass over memory each, fp32 inside, one rounding at the end.

On CUDA they are kernels of our own (`mx.fast.cuda_kernel`), elsewhere, and for widths that a kernel does not take,
operations of MLX with the same result up to rounding. A bias is added by whoever reads the product of a linear: the
epilogue that MLX's addmm asks cuBLASLt for takes longer than the addition does here.

B batch, L tokens, D width, H heads, C channels a head; modulations are (B, 6 D): shift, scale and gate of attention,
then shift, scale and gate of the feed-forward, as `img_mod` and `txt_mod` give them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, cast

import mlx.core as mx

_VECTOR_BYTES = 16
_WARP = 32
_LARGEST_BLOCK = 1024
_ROWS = 4
"""Rows that a thread of an element-wise kernel works on, so that it loads the bias once."""


class Chunk:
    """Where a modulation's vectors stand, in units of D."""

    SHIFT_1, SCALE_1, GATE_1, SHIFT_2, SCALE_2, GATE_2 = range(6)


class Projected(NamedTuple):
    """What one stream brings to attention: the products of q, k and v side by side (B, L, 3 D), their biases (3 D,),

    the scales of the norms (C,) and the rotation (L, C / 2) complex64.
    """

    qkv: mx.array
    bias: mx.array
    q_norm: mx.array
    k_norm: mx.array
    rotation: mx.array


def norm_modulate(x: mx.array, mods: mx.array, shift: int, scale: int, eps: float) -> mx.array:
    """`layer_norm(x) * (1 + scale) + shift`; x: (B, L, D), mods: (B, 6 D). Returns (B, L, D) in the dtype of x."""
    batch, length, dim = x.shape
    threads = _vectors(x)
    if not _takes(x) or threads > _LARGEST_BLOCK:
        return _norm_modulate(x, mods, shift, scale, eps)
    (out,) = _kernel("norm_modulate", ("x", "mods"), ("y",), _NORM_MODULATE)(
        inputs=[x, mods],
        template=[("T", x.dtype), ("D", dim), ("SHIFT", shift), ("SCALE", scale), ("NANO", _nano(eps))],
        grid=(threads * batch * length, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[x.shape],
        output_dtypes=[x.dtype],
    )
    return out


def gated_add(residual: mx.array, product: mx.array, bias: mx.array, mods: mx.array, gate: int) -> mx.array:
    """`residual + gate * (product + bias)`; residual and product: (B, L, D), bias: (D,), mods: (B, 6 D)."""
    if not _takes(residual, product):
        return _gated_add(residual, product, bias, mods, gate)
    batch, length, dim = residual.shape
    columns = _vectors(residual)
    (out,) = _kernel("gated_add", ("residual", "product", "bias", "mods"), ("h",), _GATED_ADD)(
        inputs=[residual, product, bias, mods],
        template=[("T", residual.dtype), ("D", dim), ("GATE", gate), ("ROWS", _ROWS)],
        grid=(columns, -(-batch * length // _ROWS), 1),
        threadgroup=(min(columns, 128), 1, 1),
        output_shapes=[residual.shape],
        output_dtypes=[residual.dtype],
    )
    return out


def gated_add_norm_modulate(
    residual: mx.array,
    product: mx.array,
    bias: mx.array,
    mods: mx.array,
    gate: int,
    shift: int,
    scale: int,
    eps: float,
) -> tuple[mx.array, mx.array]:
    """`gated_add`, rounded, and `norm_modulate` of it."""
    batch, length, dim = residual.shape
    threads = _vectors(residual)
    if not _takes(residual, product) or threads > _LARGEST_BLOCK:
        h = _gated_add(residual, product, bias, mods, gate)
        return h, _norm_modulate(h, mods, shift, scale, eps)
    inputs = ("residual", "product", "bias", "mods")
    h, y = _kernel("gated_add_norm_modulate", inputs, ("h", "y"), _GATED_ADD_NORM_MODULATE)(
        inputs=[residual, product, bias, mods],
        template=[
            *(("T", residual.dtype), ("D", dim), ("GATE", gate)),
            *(("SHIFT", shift), ("SCALE", scale), ("NANO", _nano(eps))),
        ],
        grid=(threads * batch * length, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[residual.shape] * 2,
        output_dtypes=[residual.dtype] * 2,
    )
    return h, y


def gelu(product: mx.array, bias: mx.array) -> mx.array:
    """The tanh form of GELU of `product + bias`; product: (B, L, D), bias: (D,)."""
    if not _takes(product):
        return _gelu(product, bias)
    batch, length, dim = product.shape
    columns = _vectors(product)
    (out,) = _kernel("gelu", ("x", "bias"), ("y",), _GELU)(
        inputs=[product, bias],
        template=[("T", product.dtype), ("D", dim), ("ROWS", _ROWS)],
        grid=(columns, -(-batch * length // _ROWS), 1),
        threadgroup=(min(columns, 256), 1, 1),
        output_shapes=[product.shape],
        output_dtypes=[product.dtype],
    )
    return out


def joint_qkv(txt: Projected, img: Projected, head_dim: int, eps: float) -> tuple[mx.array, mx.array, mx.array]:
    """Queries, keys and values of text and image tokens in one sequence, (B, T + L, H, C) each.

    Queries and keys are normalised (RMSNorm over C, with its scale) and rotated as complex pairs.
    """
    batch, length, dim = *img.qkv.shape[:2], img.qkv.shape[2] // 3
    threads = _vectors(img.qkv) // 3
    lanes = threads * head_dim // dim
    whole = threads % _WARP == 0 and threads <= _LARGEST_BLOCK and lanes in (1, 2, 4, 8, 16, 32)
    if not _takes(img.qkv, txt.qkv) or not whole:
        return _joint_qkv(txt, img, head_dim, eps)
    total = txt.qkv.shape[1] + length
    names = tuple(f"{stream}_{field}" for stream in ("txt", "img") for field in Projected._fields)
    arrays = [a.view(mx.float32) if a.dtype == mx.complex64 else a for a in (*txt, *img)]
    q, k, v = _kernel("joint_qkv", names, ("q", "k", "v"), _JOINT_QKV)(
        inputs=arrays,
        template=[("T", img.qkv.dtype), ("D", dim), ("C", head_dim), ("NANO", _nano(eps))],
        grid=(threads * batch * total, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[(batch, total, dim // head_dim, head_dim)] * 3,
        output_dtypes=[img.qkv.dtype] * 3,
    )
    return q, k, v


# --- operations of MLX -----------------------------------------------------------------------------------------------


def _chunk(mods: mx.array, index: int) -> mx.array:
    """(B, 1, D) of the modulations, in fp32."""
    dim = mods.shape[-1] // 6
    return mods[:, None, index * dim : (index + 1) * dim].astype(mx.float32)


def _norm_modulate(x: mx.array, mods: mx.array, shift: int, scale: int, eps: float) -> mx.array:
    y = mx.fast.layer_norm(x.astype(mx.float32), None, None, eps)
    return (y * (1 + _chunk(mods, scale)) + _chunk(mods, shift)).astype(x.dtype)


def _gated_add(residual: mx.array, product: mx.array, bias: mx.array, mods: mx.array, gate: int) -> mx.array:
    update = product.astype(mx.float32) + bias.astype(mx.float32)
    return (residual.astype(mx.float32) + _chunk(mods, gate) * update).astype(residual.dtype)


def _gelu(product: mx.array, bias: mx.array) -> mx.array:
    y = product.astype(mx.float32) + bias.astype(mx.float32)
    inner = math.sqrt(2 / math.pi) * (y + 0.044715 * (y * y * y))
    return (0.5 * y * (1 + mx.tanh(inner))).astype(product.dtype)


def _joint_qkv(txt: Projected, img: Projected, head_dim: int, eps: float) -> tuple[mx.array, mx.array, mx.array]:
    def heads(stream: Projected) -> list[mx.array]:
        y = stream.qkv.astype(mx.float32) + stream.bias.astype(mx.float32)
        return [part.reshape(*part.shape[:2], -1, head_dim) for part in mx.split(y, 3, axis=-1)]

    def turned(x: mx.array, norm: mx.array, rotation: mx.array) -> mx.array:
        y = mx.fast.rms_norm(x, norm.astype(mx.float32), eps)
        return (y.view(mx.complex64) * rotation[:, None]).view(mx.float32)

    parts = []
    for stream in (txt, img):
        q, k, v = heads(stream)
        parts.append((turned(q, stream.q_norm, stream.rotation), turned(k, stream.k_norm, stream.rotation), v))
    q, k, v = (mx.concatenate(list(both), axis=1).astype(img.qkv.dtype) for both in zip(*parts, strict=True))
    return q, k, v


# --- CUDA ------------------------------------------------------------------------------------------------------------


def _vectors(x: mx.array) -> int:
    """Of 16 bytes along the last axis; a thread loads one at a time."""
    return int(x.shape[-1] * x.dtype.size // _VECTOR_BYTES)


def _takes(x: mx.array, *others: mx.array) -> bool:
    """Whether the kernels take arrays (B, L, D) of one dtype: whole warps along D."""
    if not mx.cuda.is_available() or mx.default_device().type != mx.DeviceType.gpu:
        return False
    alike = all(other.dtype == x.dtype and other.shape[-1] == x.shape[-1] for other in others)
    return alike and mx.issubdtype(x.dtype, mx.floating) and _vectors(x) % _WARP == 0


def _nano(eps: float) -> int:
    """eps in units of 1e-9: kernels take integers as template arguments."""
    assert eps == round(eps * 1e9) / 1e9, f"eps {eps} is no multiple of 1e-9"
    return round(eps * 1e9)


@lru_cache
def _kernel(name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], source: str) -> Callable[..., Any]:
    kernel: Any = mx.fast.cuda_kernel(
        name=f"precision_lab_{name}", input_names=inputs, output_names=outputs, source=source, header=_HEADER
    )
    return cast(Callable[..., Any], kernel)


_HEADER = """
namespace precision_lab {

template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T values[N];
};

template <int N, typename T>
__device__ __forceinline__ void load(float (&to)[N], const T* from) {
  const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = static_cast<float>(pack.values[i]);
}

template <int N, typename T>
__device__ __forceinline__ void store(T* to, const float (&from)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.values[i] = static_cast<T>(from[i]);
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

template <int LANES>
__device__ __forceinline__ float lane_sum(float x) {
#pragma unroll
  for (int offset = LANES / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// every thread gets the sum, added in the same order; `parts` is shared memory of one float a warp
template <int THREADS>
__device__ __forceinline__ float block_sum(float x, float* parts) {
  x = lane_sum<32>(x);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < THREADS / 32; ++i) sum += parts[i];
  return sum;
}

// layer_norm of a row of D values, N in each thread; statistics in two passes over registers
template <int D, int N>
__device__ __forceinline__ void layer_norm(float (&x)[N], float eps) {
  constexpr int THREADS = D / N;
  __shared__ float parts[2][THREADS / 32];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) sum += x[i];
  const float mean = block_sum<THREADS>(sum, parts[0]) / D;
  float squares = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    x[i] -= mean;
    squares += x[i] * x[i];
  }
  const float scale = rsqrtf(block_sum<THREADS>(squares, parts[1]) / D + eps);
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] *= scale;
}

template <int N, typename M>
__device__ __forceinline__ void modulate(float (&x)[N], const M* shift, const M* scale) {
  float s[N], t[N];
  load(s, scale);
  load(t, shift);
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = x[i] * (1 + s[i]) + t[i];
}

// x * sigmoid(2 u) = x / 2 * (1 + tanh(u)); for 16-bit results the fast exponential (2 ulp) is exact enough
template <bool EXACT>
__device__ __forceinline__ float gelu(float x) {
  const float u = 1.5957691216057308f * (x + 0.044715f * (x * x * x));
  return EXACT ? x / (1 + expf(-u)) : __fdividef(x, 1 + __expf(-u));
}

} // namespace precision_lab
"""

_NORM_MODULATE = """
  constexpr int N = 16 / sizeof(T);
  const int64_t row = blockIdx.x;
  const int column = threadIdx.x * N;
  const auto* m = mods + row / x_shape[1] * 6 * D + column;
  float v[N];
  precision_lab::load(v, x + row * D + column);
  precision_lab::layer_norm<D>(v, NANO * 1e-9f);
  precision_lab::modulate(v, m + SHIFT * D, m + SCALE * D);
  precision_lab::store(y + row * D + column, v);
"""

_GATED_ADD_NORM_MODULATE = """
  constexpr int N = 16 / sizeof(T);
  const int64_t row = blockIdx.x;
  const int column = threadIdx.x * N;
  const auto* m = mods + row / residual_shape[1] * 6 * D + column;
  float v[N], p[N], b[N], g[N];
  precision_lab::load(v, residual + row * D + column);
  precision_lab::load(p, product + row * D + column);
  precision_lab::load(b, bias + column);
  precision_lab::load(g, m + GATE * D);
  for (int i = 0; i < N; ++i) v[i] = static_cast<float>(static_cast<T>(v[i] + g[i] * (p[i] + b[i])));
  precision_lab::store(h + row * D + column, v);
  precision_lab::layer_norm<D>(v, NANO * 1e-9f);
  precision_lab::modulate(v, m + SHIFT * D, m + SCALE * D);
  precision_lab::store(y + row * D + column, v);
"""

_GATED_ADD = """
  constexpr int N = 16 / sizeof(T);
  const int column = (blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (column >= D) return;
  const int rows = residual_shape[0] * residual_shape[1];
  float b[N];
  precision_lab::load(b, bias + column);
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const int64_t row = int64_t(blockIdx.y) * ROWS + r;
    if (row >= rows) return;
    float v[N], p[N], g[N];
    precision_lab::load(v, residual + row * D + column);
    precision_lab::load(p, product + row * D + column);
    precision_lab::load(g, mods + row / residual_shape[1] * 6 * D + GATE * D + column);
    for (int i = 0; i < N; ++i) v[i] += g[i] * (p[i] + b[i]);
    precision_lab::store(h + row * D + column, v);
  }
"""

_GELU = """
  constexpr int N = 16 / sizeof(T);
  const int column = (blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (column >= D) return;
  const int rows = x_shape[0] * x_shape[1];
  float b[N];
  precision_lab::load(b, bias + column);
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const int64_t row = int64_t(blockIdx.y) * ROWS + r;
    if (row >= rows) return;
    float v[N];
    precision_lab::load(v, x + row * D + column);
    for (int i = 0; i < N; ++i) v[i] = precision_lab::gelu<sizeof(T) == 4>(v[i] + b[i]);
    precision_lab::store(y + row * D + column, v);
  }
"""

_JOINT_QKV = """
  constexpr int N = 16 / sizeof(T);
  const int num_text = txt_qkv_shape[1], num_image = img_qkv_shape[1];
  const int batch = blockIdx.x / (num_text + num_image), token = blockIdx.x % (num_text + num_image);
  const bool text = token < num_text;
  const int position = text ? token : token - num_text;
  const int column = threadIdx.x * N, channel = column % C;
  const int64_t row = int64_t(batch) * (text ? num_text : num_image) + position;
  const auto* product = (text ? txt_qkv : img_qkv) + row * 3 * D + column;
  const auto* bias = (text ? txt_bias : img_bias) + column;
  const int64_t to = int64_t(blockIdx.x) * D + column;

  float turn[N];
  precision_lab::load(turn, (text ? txt_rotation : img_rotation) + int64_t(position) * C + channel);
  const auto turned = [&](int part, const auto* norm, T* out) {
    float x[N], b[N], w[N], y[N];
    precision_lab::load(x, product + part * D);
    precision_lab::load(b, bias + part * D);
    precision_lab::load(w, norm + channel);
    float squares = 0;
    for (int i = 0; i < N; ++i) {
      x[i] += b[i];
      squares += x[i] * x[i];
    }
    const float scale = rsqrtf(precision_lab::lane_sum<C / N>(squares) / C + NANO * 1e-9f);
    for (int i = 0; i < N; ++i) x[i] *= scale * w[i];
    for (int i = 0; i < N; i += 2) {
      y[i] = x[i] * turn[i] - x[i + 1] * turn[i + 1];
      y[i + 1] = x[i] * turn[i + 1] + x[i + 1] * turn[i];
    }
    precision_lab::store(out + to, y);
  };
  turned(0, text ? txt_q_norm : img_q_norm, q);
  turned(1, text ? txt_k_norm : img_k_norm, k);

  float x[N], b[N];
  precision_lab::load(x, product + 2 * D);
  precision_lab::load(b, bias + 2 * D);
  for (int i = 0; i < N; ++i) x[i] += b[i];
  precision_lab::store(v + to, x);
"""

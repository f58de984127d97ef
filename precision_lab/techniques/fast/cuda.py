"""The CUDA sources of the fused operations, and what their launches have in common.

Every kernel reads and writes vectors of 16 bytes, one a thread at a time, and computes in fp32. T is the dtype of the
arrays (B, L, D), the others may have dtypes of their own; shapes that a source names are given to it by MLX.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import mlx.core as mx

VECTOR_BYTES = 16
WARP = 32
LARGEST_BLOCK = 1024
ROWS = 4
"""Rows that a thread of an element-wise kernel works on, so that it loads the bias once."""


def vectors(x: mx.array) -> int:
    """Of 16 bytes along the last axis; a thread loads one at a time."""
    return int(x.shape[-1] * x.dtype.size // VECTOR_BYTES)


def takes(x: mx.array, *others: mx.array) -> bool:
    """Whether the kernels take arrays (B, L, D) of one dtype: whole warps along D."""
    if not mx.cuda.is_available() or mx.default_device().type != mx.DeviceType.gpu:
        return False
    alike = all(other.dtype == x.dtype and other.shape[-1] == x.shape[-1] for other in others)
    return alike and mx.issubdtype(x.dtype, mx.floating) and vectors(x) % WARP == 0


def nano(eps: float) -> int:
    """eps in units of 1e-9: kernels take integers as template arguments."""
    assert eps == round(eps * 1e9) / 1e9, f"eps {eps} is no multiple of 1e-9"
    return round(eps * 1e9)


@lru_cache
def kernel(name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], source: str) -> Callable[..., Any]:
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

NORM_MODULATE = """
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

GATED_ADD_NORM_MODULATE = """
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

GATED_ADD = """
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

GELU = """
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

JOINT_QKV = """
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

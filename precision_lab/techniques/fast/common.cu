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

// zeros where an operation is without this vector; then nothing is read
template <bool THERE, int N, typename T>
__device__ __forceinline__ void load_if(float (&to)[N], const T* from) {
  if constexpr (THERE) {
    load(to, from);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = 0;
  }
}

template <int N, typename T>
__device__ __forceinline__ void store(T* to, const float (&from)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.values[i] = static_cast<T>(from[i]);
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// 8 codes of BITS bits each, side by side from the lowest bit of the first byte, as MLX packs them
template <int BITS>
__device__ __forceinline__ void load_codes(float (&to)[8], const uint8_t* from) {
  uint64_t codes = 0;
  if constexpr (BITS == 8) {
    codes = *reinterpret_cast<const uint64_t*>(from);
  } else if constexpr (BITS == 4) {
    codes = *reinterpret_cast<const uint32_t*>(from);
  } else {
#pragma unroll
    for (int i = 0; i < BITS; ++i) codes |= uint64_t(from[i]) << 8 * i;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    // 2^23 + code, whose mantissa is the code: conversions of integers have a fraction of the rate of additions
    const unsigned code = unsigned(codes >> BITS * i) & ((1u << BITS) - 1);
    to[i] = __uint_as_float(0x4b000000u | code) - 8388608.0f;
  }
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

// of the modulations (B, SIZE), that of the sample of a row of (B, L, D); with PREFIX they are (B + 1, SIZE), and the
// last one is that of the first *prefix tokens of every sample
template <int SIZE, bool PREFIX, typename M, typename P>
__device__ __forceinline__ const M* modulation(const M* mods, int64_t row, int samples, int tokens, const P* prefix) {
  if constexpr (PREFIX) {
    return mods + (row % tokens < *prefix ? samples : row / tokens) * SIZE;
  } else {
    return mods + row / tokens * SIZE;
  }
}

template <bool SHIFTED, int N, typename M>
__device__ __forceinline__ void modulate(float (&x)[N], const M* shift, const M* scale) {
  float s[N], t[N];
  load(s, scale);
  load_if<SHIFTED>(t, shift);
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = x[i] * (1 + s[i]) + t[i];
}

// LIMIT 0: none; NaN stays NaN
template <int LIMIT, int N>
__device__ __forceinline__ void clip(float (&x)[N]) {
  if constexpr (LIMIT > 0) {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = x[i] > LIMIT ? LIMIT : x[i] < -LIMIT ? -LIMIT : x[i];
  }
}

// x * sigmoid(u); for 16-bit results the fast exponential (2 ulp) is exact enough
template <bool EXACT>
__device__ __forceinline__ float gated(float x, float u) {
  return EXACT ? x / (1 + expf(-u)) : __fdividef(x, 1 + __expf(-u));
}

// x / 2 * (1 + tanh(u / 2)) is x * sigmoid(u)
template <bool EXACT>
__device__ __forceinline__ float gelu(float x) {
  return gated<EXACT>(x, 1.5957691216057308f * (x + 0.044715f * (x * x * x)));
}

template <bool EXACT>
__device__ __forceinline__ float silu(float x) {
  return gated<EXACT>(x, x);
}

// q, k and v of one token from their products (3 D) and biases (3 D); q and k are normalised over C channels and rotated.
// All pointers are at the first of the thread's N channels.
template <int D, int C, bool BIAS, typename T, typename B, typename Q, typename K>
__device__ __forceinline__ void heads(
    const T* product,
    const B* bias,
    const Q* q_norm,
    const K* k_norm,
    const float* rotation,
    float eps,
    T* q,
    T* k,
    T* v) {
  constexpr int N = 16 / sizeof(T);
  float turn[N];
  load(turn, rotation);
  const auto turned = [&](int part, const auto* norm, T* out) {
    float x[N], b[N], w[N], y[N];
    load(x, product + part * D);
    load_if<BIAS>(b, bias + part * D);
    load(w, norm);
    float squares = 0;
    for (int i = 0; i < N; ++i) {
      x[i] += b[i];
      squares += x[i] * x[i];
    }
    const float scale = rsqrtf(lane_sum<C / N>(squares) / C + eps);
    for (int i = 0; i < N; ++i) x[i] *= scale * w[i];
    for (int i = 0; i < N; i += 2) {
      y[i] = x[i] * turn[i] - x[i + 1] * turn[i + 1];
      y[i + 1] = x[i] * turn[i + 1] + x[i + 1] * turn[i];
    }
    store(out, y);
  };
  turned(0, q_norm, q);
  turned(1, k_norm, k);

  float x[N], b[N];
  load(x, product + 2 * D);
  load_if<BIAS>(b, bias + 2 * D);
  for (int i = 0; i < N; ++i) x[i] += b[i];
  store(v, x);
}

// the same elements of a thread's ROWS rows
template <int ROWS, typename Body>
__device__ __forceinline__ void for_rows(int rows, const Body& body) {
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const int64_t row = int64_t(blockIdx.y) * ROWS + r;
    if (row >= rows) return;
    body(row);
  }
}

} // namespace precision_lab

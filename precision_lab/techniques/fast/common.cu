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

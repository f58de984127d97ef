// The range statistics of many arrays in one pass over memory, for mx.fast.cuda_kernel.
//
// Pass 1: a block reads a tile, TILE elements of one array, and writes a Row. Pass 2: a block merges the rows of one
// array. Both merge in a fixed order without atomics, so every run gives the same bits.
//
// Elements are compared as integers: with the sign bit cleared, bit patterns sort like magnitudes, with infinity above
// all finite values and NaN above infinity. Two 16-bit elements share a word and are compared by one instruction. Words
// with elements that are not finite are rare; their elements are processed one by one.
//
// range_kernel.py prepends THREADS, TILE, COUNTS, STEPS, INF, SIGN, the type Bits, and threshold(i), the i-th of the
// STEPS magnitudes to count from, as a bit pattern of the dtype.

namespace range_statistics {

// The statistics of some elements; range_rows.py reads them.
struct Row {
  double sum, squares;     // of the finite elements
  unsigned num_nan, num_inf;
  int signed_max;          // extremes of the finite elements' bit patterns, as signed integers
  unsigned unsigned_max;   // and as unsigned integers
  unsigned unsigned_min;
  unsigned smallest;       // smallest magnitude that is not zero
  int exponent;            // 0: the sums are in units of 1
  unsigned at_least[COUNTS];  // number of elements, including infinities, with magnitude >= threshold(i)
};

__device__ inline void merge(Row& row, const Row& other) {
  row.sum += other.sum;
  row.squares += other.squares;
  row.num_nan += other.num_nan;
  row.num_inf += other.num_inf;
  row.signed_max = max(row.signed_max, other.signed_max);
  row.unsigned_max = max(row.unsigned_max, other.unsigned_max);
  row.unsigned_min = min(row.unsigned_min, other.unsigned_min);
  row.smallest = min(row.smallest, other.smallest);
#pragma unroll
  for (int i = 0; i < COUNTS; ++i) {
    row.at_least[i] += other.at_least[i];
  }
}

__device__ inline Row empty() {
  Row row;
  row.sum = row.squares = 0.0;
  row.num_nan = row.num_inf = 0;
  row.signed_max = -0x7fffffff - 1;
  row.unsigned_max = 0;
  row.unsigned_min = row.smallest = 0xffffffffu;
  row.exponent = 0;
#pragma unroll
  for (int i = 0; i < COUNTS; ++i) {
    row.at_least[i] = 0;
  }
  return row;
}

// --- words of 32 bits: two elements of 16, or one of 32 -------------------------------------------------------------

template <int BITS>
struct Word;

template <>
struct Word<16> {
  static constexpr unsigned EACH = 0x00010001u;
  // 1 in each half of m that is at least t, else 0; 0 < t <= 0x7fff, halves of m up to 0x7fff
  static __device__ unsigned at_least(unsigned m, unsigned t) {
    return __viaddmin_s16x2_relu(m, ((1u - t) & 0xffffu) * EACH, EACH);
  }
  static __device__ unsigned signed_max(unsigned a, unsigned b) { return __vmaxs2(a, b); }
  static __device__ unsigned unsigned_max(unsigned a, unsigned b) { return __vmaxu2(a, b); }
  static __device__ unsigned unsigned_min(unsigned a, unsigned b) { return __vminu2(a, b); }
};

template <>
struct Word<32> {
  static constexpr unsigned EACH = 1u;
  static __device__ unsigned at_least(unsigned m, unsigned t) {
    return static_cast<unsigned>(__viaddmin_s32_relu(static_cast<int>(m), 1 - static_cast<int>(t), 1));
  }
  static __device__ unsigned signed_max(unsigned a, unsigned b) {
    return static_cast<unsigned>(max(static_cast<int>(a), static_cast<int>(b)));
  }
  static __device__ unsigned unsigned_max(unsigned a, unsigned b) { return max(a, b); }
  static __device__ unsigned unsigned_min(unsigned a, unsigned b) { return min(a, b); }
};

template <typename T>
struct Element;

template <>
struct Element<__nv_bfloat16> {
  static __device__ float value(unsigned bits) { return __uint_as_float(bits << 16); }
};

template <>
struct Element<__half> {
  static __device__ float value(unsigned bits) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
  }
};

template <>
struct Element<float> {
  static __device__ float value(unsigned bits) { return __uint_as_float(bits); }
};

// --- the elements that one thread reads -----------------------------------------------------------------------------

template <typename T>
struct Tally {
  static constexpr int BITS = 8 * sizeof(T);
  using W = Word<BITS>;
  static constexpr unsigned SIGNS = SIGN * W::EACH;

  double sum, squares;
  unsigned num_nan, num_inf;
  // the other counters have one half for each half of a word; a thread counts at most TILE / THREADS in each
  unsigned signed_max, unsigned_max, unsigned_min;
  unsigned complement;  // signed maximum of SIGN - magnitude, which for zero is the lowest integer
  unsigned at_least[STEPS];

  __device__ Tally() : sum(0.0), squares(0.0), num_nan(0), num_inf(0) {
    signed_max = complement = SIGNS;
    unsigned_max = 0;
    unsigned_min = 0xffffffffu;
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
      at_least[i] = 0;
    }
  }

  // Adds four words if all their elements are finite; otherwise does nothing and returns false.
  __device__ bool take(const uint4& v) {
    const unsigned largest = W::unsigned_max(
        W::unsigned_max(v.x & ~SIGNS, v.y & ~SIGNS), W::unsigned_max(v.z & ~SIGNS, v.w & ~SIGNS));
    if (W::at_least(largest, INF)) {
      return false;
    }
    take_finite(v.x);
    take_finite(v.y);
    take_finite(v.z);
    take_finite(v.w);
    return true;
  }

  // Adds one element of any value.
  __device__ void take_one(unsigned bits) {
    const unsigned magnitude = bits & (SIGN - 1);
    if (magnitude > INF) {
      ++num_nan;
      return;
    }
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
      at_least[i] += magnitude >= threshold(i);
    }
    if (magnitude == INF) {
      ++num_inf;
      return;
    }
    bound(bits * W::EACH);
    add(Element<T>::value(bits));
  }

  __device__ Row row() const {
    Row row = empty();
    row.sum = sum;
    row.squares = squares;
    row.num_nan = num_nan;
    row.num_inf = num_inf;
    int nearest;
    if constexpr (BITS == 16) {
      row.signed_max = max(static_cast<short>(signed_max), static_cast<short>(signed_max >> 16));
      row.unsigned_max = max(unsigned_max & 0xffffu, unsigned_max >> 16);
      row.unsigned_min = min(unsigned_min & 0xffffu, unsigned_min >> 16);
      nearest = max(static_cast<short>(complement), static_cast<short>(complement >> 16));
    } else {
      row.signed_max = static_cast<int>(signed_max);
      row.unsigned_max = unsigned_max;
      row.unsigned_min = unsigned_min;
      nearest = static_cast<int>(complement);
    }
    if (nearest > 0) {
      row.smallest = SIGN - static_cast<unsigned>(nearest);
    }
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
      row.at_least[i] = BITS == 16 ? (at_least[i] & 0xffffu) + (at_least[i] >> 16) : at_least[i];
    }
    return row;
  }

 private:
  __device__ void take_finite(unsigned word) {
    const unsigned magnitude = word & ~SIGNS;
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
      at_least[i] += W::at_least(magnitude, threshold(i));
    }
    bound(word);
    if constexpr (BITS == 16) {
      add(Element<T>::value(word & 0xffffu));
      add(Element<T>::value(word >> 16));
    } else {
      add(Element<T>::value(word));
    }
  }

  __device__ void bound(unsigned word) {
    signed_max = W::signed_max(signed_max, word);
    unsigned_max = W::unsigned_max(unsigned_max, word);
    unsigned_min = W::unsigned_min(unsigned_min, word);
    complement = W::signed_max(complement, SIGNS - (word & ~SIGNS));
  }

  __device__ void add(float x) {
    const double wide = x;
    sum += wide;
    squares += wide * wide;
  }
};

// Reads `size` elements, at most TILE, with all threads of a block: batches of 16-byte vectors, then the rest one by
// one. An array that is not aligned to vectors (a slice) is read one by one.
template <typename T>
__device__ Row read(const T* x, int size) {
  constexpr int WIDTH = 16 / sizeof(T);
  constexpr int AHEAD = 4;  // vectors that a thread loads before it uses the first
  const Bits* elements = reinterpret_cast<const Bits*>(x);
  const uint4* vectors = reinterpret_cast<const uint4*>(x);
  const int num_vectors = reinterpret_cast<size_t>(x) % 16 == 0 ? size / WIDTH : 0;
  const int batches = num_vectors / (AHEAD * THREADS);
  Tally<T> tally;
  for (int batch = 0; batch < batches; ++batch) {
    const int at = batch * AHEAD * THREADS + threadIdx.x;
    uint4 loaded[AHEAD];
#pragma unroll
    for (int j = 0; j < AHEAD; ++j) {
      loaded[j] = vectors[at + j * THREADS];
    }
#pragma unroll
    for (int j = 0; j < AHEAD; ++j) {
      if (!tally.take(loaded[j])) {
#pragma unroll 1
        for (int e = 0; e < WIDTH; ++e) {
          tally.take_one(elements[(at + j * THREADS) * WIDTH + e]);
        }
      }
    }
  }
#pragma unroll 1
  for (int e = batches * AHEAD * THREADS * WIDTH + threadIdx.x; e < size; e += THREADS) {
    tally.take_one(elements[e]);
  }
  return tally.row();
}

// --- the rows of a block --------------------------------------------------------------------------------------------

__device__ inline Row from_lane_above(const Row& row, int distance) {
  constexpr unsigned ALL = 0xffffffffu;
  Row other;
  other.sum = __shfl_down_sync(ALL, row.sum, distance);
  other.squares = __shfl_down_sync(ALL, row.squares, distance);
  other.num_nan = __shfl_down_sync(ALL, row.num_nan, distance);
  other.num_inf = __shfl_down_sync(ALL, row.num_inf, distance);
  other.signed_max = __shfl_down_sync(ALL, row.signed_max, distance);
  other.unsigned_max = __shfl_down_sync(ALL, row.unsigned_max, distance);
  other.unsigned_min = __shfl_down_sync(ALL, row.unsigned_min, distance);
  other.smallest = __shfl_down_sync(ALL, row.smallest, distance);
#pragma unroll
  for (int i = 0; i < COUNTS; ++i) {
    other.at_least[i] = __shfl_down_sync(ALL, row.at_least[i], distance);
  }
  return other;
}

// Merges the rows of all threads of a block into `total`.
__device__ inline void merge_block(Row row, Row& total) {
  constexpr int WARP = 32;
  __shared__ Row warps[THREADS / WARP];
#pragma unroll
  for (int distance = WARP / 2; distance > 0; distance /= 2) {
    merge(row, from_lane_above(row, distance));
  }
  if (threadIdx.x % WARP == 0) {
    warps[threadIdx.x / WARP] = row;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < THREADS / WARP; ++i) {
      merge(row, warps[i]);
    }
    total = row;
  }
}

// Pass 1. first_tiles: (ARRAYS + 1,), the index of the first row of each array; arrays, sizes: (ARRAYS,).
template <typename T, int ARRAYS>
__device__ inline void read_tile(
    const T* const (&arrays)[ARRAYS], const int (&sizes)[ARRAYS], unsigned* rows, int* first_tiles) {
  const int block = blockIdx.x;
  const T* start = nullptr;
  int size = 0;
  int first = 0;
#pragma unroll
  for (int k = 0; k < ARRAYS; ++k) {
    const int tiles = (sizes[k] - 1) / TILE + 1;
    if (block >= first && block < first + tiles) {
      const int offset = (block - first) * TILE;
      start = arrays[k] + offset;
      size = min(TILE, sizes[k] - offset);
    }
    if (block == 0 && threadIdx.x == 0) {
      first_tiles[k] = first;
    }
    first += tiles;
  }
  if (block == 0 && threadIdx.x == 0) {
    first_tiles[ARRAYS] = first;
  }
  merge_block(read(start, size), reinterpret_cast<Row*>(rows)[block]);
}

// Pass 2: block k merges the rows of array k.
__device__ inline void merge_tiles(const unsigned* rows, const int* first_tiles, unsigned* totals) {
  Row row = empty();
  for (int i = first_tiles[blockIdx.x] + threadIdx.x; i < first_tiles[blockIdx.x + 1]; i += THREADS) {
    merge(row, reinterpret_cast<const Row*>(rows)[i]);
  }
  merge_block(row, reinterpret_cast<Row*>(totals)[blockIdx.x]);
}

}  // namespace range_statistics

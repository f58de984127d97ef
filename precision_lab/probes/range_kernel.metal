// The range statistics of one array in one pass over memory, for mx.fast.metal_kernel.
//
// Pass 1: a threadgroup reads a tile, TILE elements, and writes a Row. Pass 2: one threadgroup merges the rows. Both
// merge in a fixed order without atomics, so every run gives the same bits.
//
// Elements are compared as integers: with the sign bit cleared, bit patterns sort like magnitudes, with infinity above
// all finite values and NaN above infinity. Metal has no double, and may flush subnormal floats to zero. Values are
// therefore built from integers, in units of a power of two near the largest magnitude so far, so that neither they nor
// their squares overflow. A second float holds the rounding error of each sum (Knuth's two-sum).
//
// range_kernel.py prepends THREADS, TILE, COUNTS, STEPS, INF, MANTISSA_BITS, BIAS, SIGN, the type Bits, and
// threshold(i), the i-th of the STEPS magnitudes to count from, as a bit pattern of the dtype.

#include <metal_stdlib>

using namespace metal;

namespace range_statistics {

constant constexpr int NONE = -1000;  // the exponent before any sum

// The statistics of some elements; range_rows.py reads them.
struct Row {
  float2 sum, squares;     // of the finite elements; sums of two parts, in units of 2^exponent and its square
  uint num_nan, num_inf;
  int signed_max;          // extremes of the finite elements' bit patterns, as signed integers
  uint unsigned_max;       // and as unsigned integers
  uint unsigned_min;
  uint smallest;           // smallest magnitude that is not zero
  int exponent;
  uint at_least[COUNTS];   // number of elements, including infinities, with magnitude >= threshold(i)
};

inline Row empty() {
  Row row;
  row.sum = row.squares = float2(0.0f, 0.0f);
  row.num_nan = row.num_inf = 0;
  row.signed_max = -0x7fffffff - 1;
  row.unsigned_max = 0;
  row.unsigned_min = row.smallest = 0xffffffffu;
  row.exponent = NONE;
  for (int i = 0; i < COUNTS; ++i) {
    row.at_least[i] = 0;
  }
  return row;
}

// 2^n for n <= 127; 0 if that is not a normal float
inline float power_of_two(int n) {
  return n < -126 ? 0.0f : as_type<float>(uint(127 + n) << 23);
}

inline float2 plus(float2 a, float2 b) {
  const float s = a.x + b.x;
  const float of_b = s - a.x;
  const float lost = (a.x - (s - of_b)) + (b.x - of_b);
  return float2(s, lost + (a.y + b.y));
}

// Converts the sums to units of 2^exponent, which must not be smaller than their current unit.
inline void rescale(thread Row& row, int exponent) {
  row.sum *= power_of_two(row.exponent - exponent);
  row.squares *= power_of_two(2 * (row.exponent - exponent));
  row.exponent = exponent;
}

inline void merge(thread Row& row, Row other) {
  const int exponent = max(row.exponent, other.exponent);
  rescale(row, exponent);
  rescale(other, exponent);
  row.sum = plus(row.sum, other.sum);
  row.squares = plus(row.squares, other.squares);
  row.num_nan += other.num_nan;
  row.num_inf += other.num_inf;
  row.signed_max = max(row.signed_max, other.signed_max);
  row.unsigned_max = max(row.unsigned_max, other.unsigned_max);
  row.unsigned_min = min(row.unsigned_min, other.unsigned_min);
  row.smallest = min(row.smallest, other.smallest);
  for (int i = 0; i < COUNTS; ++i) {
    row.at_least[i] += other.at_least[i];
  }
}

// The value is exactly mantissa * 2^power.
inline void add(thread Row& row, uint magnitude, bool negative) {
  const uint field = magnitude >> MANTISSA_BITS;
  const uint fraction = magnitude & ((1u << MANTISSA_BITS) - 1);
  const uint mantissa = field > 0 ? fraction | (1u << MANTISSA_BITS) : fraction;
  const int power = int(max(field, 1u)) - BIAS - MANTISSA_BITS;
  const int exponent = power + 31 - int(clz(mantissa));
  if (exponent > row.exponent) {
    rescale(row, exponent);
  }
  const float size = float(mantissa) * power_of_two(power - row.exponent);
  const float square = size * size;
  row.sum = plus(row.sum, float2(negative ? -size : size, 0.0f));
  row.squares = plus(row.squares, float2(square, fma(size, size, -square)));
}

inline void take(thread Row& row, Bits bits) {
  const uint magnitude = bits & (SIGN - 1);
  if (magnitude > INF) {
    ++row.num_nan;
    return;
  }
  for (int i = 0; i < STEPS; ++i) {
    row.at_least[i] += magnitude >= threshold(i);
  }
  if (magnitude == INF) {
    ++row.num_inf;
    return;
  }
  const bool negative = bits >= SIGN;
  row.signed_max = max(row.signed_max, negative ? int(magnitude) - int(SIGN - 1) - 1 : int(magnitude));
  row.unsigned_max = max(row.unsigned_max, uint(bits));
  row.unsigned_min = min(row.unsigned_min, uint(bits));
  if (magnitude > 0) {
    row.smallest = min(row.smallest, magnitude);
    add(row, magnitude, negative);
  }
}

// Merges the rows of all threads of a threadgroup into `total`.
inline void merge_threads(Row row, threadgroup Row* rows, device Row* total, uint thread_index) {
  rows[thread_index] = row;
  for (uint half_of = THREADS / 2; half_of > 0; half_of /= 2) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (thread_index < half_of) {
      merge(row, rows[thread_index + half_of]);
      rows[thread_index] = row;
    }
  }
  if (thread_index == 0) {
    *total = row;
  }
}

// Pass 1; P: a pointer to Bits, in whichever address space MLX puts an array of this size.
template <typename P>
inline Row read_tile(P elements, uint size, uint tile, uint thread_index) {
  Row row = empty();
  const uint end = min(size, (tile + 1) * TILE);
  for (uint i = tile * TILE + thread_index; i < end; i += THREADS) {
    take(row, elements[i]);
  }
  return row;
}

// Pass 2.
inline Row merge_tiles(const device Row* rows, uint num_tiles, uint thread_index) {
  Row row = empty();
  for (uint i = thread_index; i < num_tiles; i += THREADS) {
    merge(row, rows[i]);
  }
  return row;
}

}  // namespace range_statistics

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

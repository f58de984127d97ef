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

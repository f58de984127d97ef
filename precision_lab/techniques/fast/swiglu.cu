  constexpr int N = 16 / sizeof(T);
  const int column = (blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (column >= D) return;
  precision_lab::for_rows<ROWS>(x_shape[0] * x_shape[1], [&](int64_t row) {
    float g[N], u[N];
    precision_lab::load(g, x + row * 2 * D + column);
    precision_lab::load(u, x + row * 2 * D + D + column);
    for (int i = 0; i < N; ++i) g[i] = precision_lab::silu<sizeof(T) == 4>(g[i]) * u[i];
    precision_lab::store(y + row * D + column, g);
  });

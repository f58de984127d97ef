  constexpr int N = 16 / sizeof(T);
  const int column = (blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (column >= D) return;
  float b[N];
  precision_lab::load(b, bias + column);
  precision_lab::for_rows<ROWS>(x_shape[0] * x_shape[1], [&](int64_t row) {
    float v[N];
    precision_lab::load(v, x + row * D + column);
    for (int i = 0; i < N; ++i) v[i] = precision_lab::gelu<sizeof(T) == 4>(v[i] + b[i]);
    precision_lab::store(y + row * D + column, v);
  });

  constexpr int N = 16 / sizeof(T);
  const int64_t row = blockIdx.x;
  const int column = threadIdx.x * N;
  const auto* m = precision_lab::modulation<CHUNKS * D, PREFIX>(mods, row, x_shape[0], x_shape[1], prefix) + column;
  float v[N];
  precision_lab::load(v, x + row * D + column);
  precision_lab::layer_norm<D>(v, NANO * 1e-9f);
  precision_lab::modulate<SHIFTED>(v, m + SHIFT * D, m + SCALE * D);
  precision_lab::store(y + row * D + column, v);

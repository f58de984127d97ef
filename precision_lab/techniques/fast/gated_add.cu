  constexpr int N = 16 / sizeof(T);
  const int column = (blockIdx.x * blockDim.x + threadIdx.x) * N;
  if (column >= D) return;
  const int samples = residual_shape[0], tokens = residual_shape[1];
  float b[N];
  precision_lab::load_if<BIAS>(b, bias + column);
  precision_lab::for_rows<ROWS>(samples * tokens, [&](int64_t row) {
    float v[N], p[N], g[N];
    precision_lab::load(v, residual + row * D + column);
    precision_lab::load(p, product + row * D + column);
    const auto* m = precision_lab::modulation<CHUNKS * D, PREFIX>(mods, row, samples, tokens, prefix);
    precision_lab::load(g, m + GATE * D + column);
    for (int i = 0; i < N; ++i) v[i] += g[i] * (p[i] + b[i]);
    precision_lab::clip<LIMIT>(v);
    precision_lab::store(h + row * D + column, v);
  });

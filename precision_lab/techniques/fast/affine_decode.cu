  const int column = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
  if (column >= C) return;
  precision_lab::for_rows<ROWS>(weight_shape[0], [&](int64_t row) {
    float v[8];
    precision_lab::load_codes<BITS>(v, reinterpret_cast<const uint8_t*>(weight) + (row * C + column) / 8 * BITS);
    const int64_t group = (row * C + column) / GROUP;
    const float scale = static_cast<float>(scales[group]);
    const float bias = static_cast<float>(biases[group]);
    for (int i = 0; i < 8; ++i) v[i] = fmaf(scale, v[i], bias);
    precision_lab::store(y + row * C + column, v);
  });

  constexpr int N = 16 / sizeof(T);
  const int num_kept = KEPT ? keys_shape[1] : 0, num_tokens = qkv_shape[1];
  const int batch = blockIdx.x / (num_kept + num_tokens), token = blockIdx.x % (num_kept + num_tokens) - num_kept;
  const int column = threadIdx.x * N, channel = column % C;
  const int64_t to = int64_t(blockIdx.x) * D + column;
  if (KEPT && token < 0) {
    const int64_t from = (int64_t(batch + 1) * num_kept + token) * D + column;
    float x[N];
    precision_lab::load(x, keys + from);
    precision_lab::store(k + to, x);
    precision_lab::load(x, values + from);
    precision_lab::store(v + to, x);
    return;
  }
  const int64_t row = int64_t(batch) * num_tokens + token;
  precision_lab::heads<D, C, BIAS>(
      qkv + row * 3 * D + column,
      bias + column,
      q_norm + channel,
      k_norm + channel,
      rotation + int64_t(token) * C + channel,
      NANO * 1e-9f,
      q + row * D + column,
      k + to,
      v + to);

  constexpr int N = 16 / sizeof(T);
  const int num_text = txt_qkv_shape[1], num_image = img_qkv_shape[1];
  const int batch = blockIdx.x / (num_text + num_image), token = blockIdx.x % (num_text + num_image);
  const bool text = token < num_text;
  const int position = text ? token : token - num_text;
  const int column = threadIdx.x * N, channel = column % C;
  const int64_t row = int64_t(batch) * (text ? num_text : num_image) + position;
  const auto* product = (text ? txt_qkv : img_qkv) + row * 3 * D + column;
  const auto* bias = (text ? txt_bias : img_bias) + column;
  const int64_t to = int64_t(blockIdx.x) * D + column;

  float turn[N];
  precision_lab::load(turn, (text ? txt_rotation : img_rotation) + int64_t(position) * C + channel);
  const auto turned = [&](int part, const auto* norm, T* out) {
    float x[N], b[N], w[N], y[N];
    precision_lab::load(x, product + part * D);
    precision_lab::load(b, bias + part * D);
    precision_lab::load(w, norm + channel);
    float squares = 0;
    for (int i = 0; i < N; ++i) {
      x[i] += b[i];
      squares += x[i] * x[i];
    }
    const float scale = rsqrtf(precision_lab::lane_sum<C / N>(squares) / C + NANO * 1e-9f);
    for (int i = 0; i < N; ++i) x[i] *= scale * w[i];
    for (int i = 0; i < N; i += 2) {
      y[i] = x[i] * turn[i] - x[i + 1] * turn[i + 1];
      y[i + 1] = x[i] * turn[i + 1] + x[i + 1] * turn[i];
    }
    precision_lab::store(out + to, y);
  };
  turned(0, text ? txt_q_norm : img_q_norm, q);
  turned(1, text ? txt_k_norm : img_k_norm, k);

  float x[N], b[N];
  precision_lab::load(x, product + 2 * D);
  precision_lab::load(b, bias + 2 * D);
  for (int i = 0; i < N; ++i) x[i] += b[i];
  precision_lab::store(v + to, x);

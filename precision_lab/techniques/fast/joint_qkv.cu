  constexpr int N = 16 / sizeof(T);
  const int num_text = txt_qkv_shape[1], num_image = img_qkv_shape[1];
  const int batch = blockIdx.x / (num_text + num_image), token = blockIdx.x % (num_text + num_image);
  const bool text = token < num_text;
  const int position = text ? token : token - num_text;
  const int column = threadIdx.x * N, channel = column % C;
  const int64_t row = int64_t(batch) * (text ? num_text : num_image) + position;
  const int64_t to = int64_t(blockIdx.x) * D + column;
  precision_lab::heads<D, C, BIAS>(
      (text ? txt_qkv : img_qkv) + row * 3 * D + column,
      (text ? txt_bias : img_bias) + column,
      (text ? txt_q_norm : img_q_norm) + channel,
      (text ? txt_k_norm : img_k_norm) + channel,
      (text ? txt_rotation : img_rotation) + int64_t(position) * C + channel,
      NANO * 1e-9f,
      q + to,
      k + to,
      v + to);

"""A Qwen3 of mlx-lm with tiny random weights: what this project is about."""

import mlx.core as mx
from mlx_lm.models.qwen3 import Model, ModelArgs


def load() -> Model:
    """The model in bfloat16, its weights drawn from a seed."""
    mx.random.seed(0)
    model = Model(
        ModelArgs(
            model_type="qwen3",
            hidden_size=64,
            num_hidden_layers=4,
            intermediate_size=160,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            rms_norm_eps=1e-6,
            vocab_size=256,
            max_position_embeddings=128,
            rope_theta=10000.0,
            tie_word_embeddings=True,
        )
    )
    model.set_dtype(mx.bfloat16)
    return model

"""The gate: each test fails if what the model computes left the ranges stored beside it."""

import mlx.core as mx
from language_model import load
from mlx_lm.models.cache import make_prompt_cache

PROMPT = mx.arange(1, 13)[None]


def test_prompt(activation_ranges):
    logits = activation_ranges.check(load(), PROMPT)
    assert logits.shape == (1, 12, 256)


def test_decoding_with_a_cache(activation_ranges):
    model = load()
    cache = make_prompt_cache(model)
    with activation_ranges(model, sites=["model.layers.**", "."]):
        model(PROMPT, cache=cache)
        for token in (17, 42, 3):
            model(mx.array([[token]]), cache=cache)


def test_compiled(activation_ranges):
    model = load()
    with activation_ranges(model, sites=["model.layers.*", "."]) as seen:
        forward = seen.compile(lambda tokens: model(tokens))
        forward(PROMPT)

"""A small synthetic pipeline for tests of techniques."""

import mlx.core as mx
import pytest

from tests.subjects import source
from tests.techniques.evaluation import pipelines


@pytest.fixture(scope="session")
def small(small_checkpoint):
    """Four blocks of width 64, with biases as large as the synthetic weights have them."""
    return source(small_checkpoint)


@pytest.fixture(scope="session")
def models(small):
    return pipelines(small)


@pytest.fixture
def pipeline(models):
    return models(mx.float32)

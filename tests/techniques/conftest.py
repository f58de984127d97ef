"""A small synthetic pipeline for tests of techniques."""

import mlx.core as mx
import pytest

from precision_lab.lab.models import Models
from precision_lab.model.qwen_image.checkpoint import Checkpoint


@pytest.fixture(scope="session")
def models(small_checkpoint):
    """Four blocks of width 64, with biases as large as the synthetic weights have them."""
    return Models(Checkpoint(small_checkpoint))


@pytest.fixture
def pipeline(models):
    return models(mx.float32)

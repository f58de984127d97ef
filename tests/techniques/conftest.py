"""A small synthetic pipeline to try techniques on."""

import mlx.core as mx
import pytest

from precision_lab.lab.models import Models
from precision_lab.model.qwen_image.checkpoint import Checkpoint


@pytest.fixture(scope="session")
def models(small_checkpoint):
    """Four blocks, width 64; biases of the size that the synthetic weights give them."""
    return Models(Checkpoint(small_checkpoint))


@pytest.fixture
def pipeline(models):
    return models(mx.float32)

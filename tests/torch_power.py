"""torch.pow of fp32, rounded correctly."""

import pytest
import torch


def round_powers_correctly(patch: pytest.MonkeyPatch) -> None:
    """Makes torch.pow compute in float64 and round once to fp32.

    On some CPUs the vectorised power of torch is off by an ulp. That shifts large rotary angles by 2e-6 and more, which
    is no difference between two implementations of the model.
    """
    power = torch.pow
    patch.setattr(torch, "pow", lambda base, exponent: power(base, exponent.double()).float())

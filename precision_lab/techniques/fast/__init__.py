"""`technique=fast`: the function of the plain model in fewer operations."""

from precision_lab.techniques.fast.technique import Fast as Fast

__all__ = ["Fast"]

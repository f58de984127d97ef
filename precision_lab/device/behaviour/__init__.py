"""Numerical behaviour of MLX's operations on the current machine, inferred from their inputs and outputs.

A probe (products, sums, interior, attention, rounding, ranges, nans, compiled) is independent of MLX: it takes an
operation on NumPy arrays and names its behaviour. `suite` applies all probes to MLX's operations; `verdict` judges S6.
"""

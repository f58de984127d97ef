"""The behaviour of MLX's operations on the machine at hand, from their inputs and outputs alone.

A probe (products, sums, interior, attention, rounding, ranges, nans, compiled) knows no MLX: it takes an operation on
NumPy arrays and names its behaviour. `suite` puts MLX's operations through all of them; `verdict` judges S6.
"""

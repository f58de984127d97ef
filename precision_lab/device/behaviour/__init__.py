"""What MLX's operations do on the machine at hand, found from numbers that go in and numbers that come out.

A probe (products, sums, interior, attention, rounding, ranges, nans, compiled) knows no MLX: it takes an operation on
NumPy arrays and names its behaviour. `suite` puts MLX's operations through all of them; `verdict` judges S6.
"""

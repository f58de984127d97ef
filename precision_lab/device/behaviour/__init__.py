"""The numerical behaviour of MLX's operations on this machine, inferred from their inputs and outputs.

The probes (products, sums, interior, attention, rounding, ranges, nans, compiled) do not depend on MLX: each takes an
operation on NumPy arrays and names its behaviour. `suite` runs them on MLX's operations; `verdict` judges claim S6.
"""

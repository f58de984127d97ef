"""MLX's operations with the probes that apply to them: one function `findings(storage, rng)` per family.

Besides `bridge`, this is the only part of `behaviour` that imports MLX.
"""

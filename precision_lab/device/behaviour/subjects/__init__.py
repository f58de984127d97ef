"""MLX's operations and the probes applied to each, as one `findings(storage, rng)` per family.

Besides `bridge`, this is the only part of `behaviour` that depends on MLX.
"""

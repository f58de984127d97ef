"""MLX's operations, each with the probes it is put through: one `findings(storage, rng)` a family.

The only part of `behaviour`, besides its bridge, that knows MLX.
"""

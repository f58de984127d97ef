"""Typed records of the files of a run. Imports no MLX: judging or drawing a run needs no model."""

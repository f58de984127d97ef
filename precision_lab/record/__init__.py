"""What a run leaves: typed records of its files. Imports no MLX: whoever judges or draws a run needs no model."""

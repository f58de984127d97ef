"""A closed world of pictures: one group of one to three equal objects on a plain background.

Every scene has one caption and countless pictures. `render` draws the pictures, for training a small text-to-image
checkpoint. `read` recognises the scene in a picture by classical image processing, to count the correct pictures of the
checkpoint. The package uses only NumPy, SciPy and scikit-image, so it runs where MLX does not.
"""

from precision_lab.shapes.drawing import render
from precision_lab.shapes.reading import Reading, read
from precision_lab.shapes.scenes import Scene, all_scenes, held_out_scenes, parse, training_scenes
from precision_lab.shapes.scoring import SCORED, correct, verdict

__all__ = [
    "SCORED",
    "Reading",
    "Scene",
    "all_scenes",
    "correct",
    "held_out_scenes",
    "parse",
    "read",
    "render",
    "training_scenes",
    "verdict",
]

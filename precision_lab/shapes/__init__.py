"""A closed world of pictures: one group of one to three equal objects on a plain or transparent background.

Every scene has one caption and any number of pictures. `render` draws them to train a small text-to-image checkpoint;
`read` recognises the scene of a picture by classical image processing, to count how many of the checkpoint's pictures
are correct. The package needs only NumPy, SciPy and scikit-image, so it also runs where MLX does not.
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

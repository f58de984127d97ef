"""Models whose recipes tests translate, as targets of each dialect that names their modules."""

import json
from functools import cache

from precision_lab.instrument.sites import Components
from precision_lab.lab.recipe import target_of
from precision_lab.model.folder import _CHECKPOINTS
from precision_lab.model.qwen_image import config, layout, naming, transformer
from precision_lab.model.qwen_image_21 import config as config_21
from precision_lab.model.qwen_image_21 import layout as layout_21
from precision_lab.model.qwen_image_21 import naming as naming_21
from precision_lab.model.qwen_image_21 import transformer as transformer_21
from precision_lab.recipes.dialects import DIALECTS

MODELS = {
    "micro": (config.TransformerConfig, transformer.Transformer, layout.layout, naming.NAMINGS),
    "published": (config.TransformerConfig, transformer.Transformer, layout.layout, naming.NAMINGS),
    "micro_21": (config_21.TransformerConfig, transformer_21.Transformer, layout_21.layout, naming_21.NAMINGS),
}
PAIRS = [(model, dialect) for model in MODELS for dialect in DIALECTS if dialect in MODELS[model][3]]


def built(model):
    """The transformer, whose weights are never evaluated."""
    kind, build, arranged, _ = MODELS[model]
    stated = {} if model == "published" else _stored(model)
    settings, _ = kind.from_dict(stated)
    return Components({"transformer": build(settings)}, arranged(settings.num_layers))


@cache
def components(model):
    """As `built`, for those that change nothing."""
    return built(model)


@cache
def target(model, dialect):
    return target_of(components(model), model, MODELS[model][3][dialect])


def _stored(model):
    return json.loads((_CHECKPOINTS / model / "transformer" / "config.json").read_text())

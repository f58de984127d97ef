"""Another technique at some of its sites only, so that a search can find those that matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.nn as nn

from precision_lab.instrument.sites import Site
from precision_lab.techniques.base import FitToModel, Technique, first_naming


@dataclass(frozen=True)
class Restricted:
    """`technique` at those of its sites that `sites` name too; elsewhere it changes nothing."""

    technique: Technique
    sites: Sequence[str]

    @property
    def preserves_function(self) -> bool:
        return self.technique.preserves_function

    @property
    def composes(self) -> bool:
        return self.technique.composes

    @property
    def of_linears(self) -> bool:
        """Whether the technique is one of `OfLinears`."""
        return bool(getattr(self.technique, "of_linears", False))

    def check_model(self, sites: Sequence[Site]) -> None:
        """Checks the technique as `FitToModel`, if it is one."""
        if isinstance(self.technique, FitToModel):
            self.technique.check_model(sites)

    def rewrite(self, site: Site) -> nn.Module:
        return self.technique.rewrite(site) if first_naming(self.technique.sites, site) else site.module

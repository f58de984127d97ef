"""Probes of an experiment under a command that composes none."""

from __future__ import annotations

from omegaconf import DictConfig

from precision_lab.cli.paths import options


def without_settings_of_absent(config: DictConfig) -> DictConfig:
    """`config` without settings of shipped probes that the command does not compose, such as `probe.range.sites`.

    An experiment that narrows the sites of a probe is then usable with commands that record nothing by default.
    """
    config = config.copy()
    probes = config.get("probe")
    for name in options("probe") if isinstance(probes, DictConfig) else ():
        settings = probes.get(name)
        if isinstance(settings, DictConfig) and "_target_" not in settings:
            del probes[name]
    return config

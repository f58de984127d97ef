"""The tables that a scan of sensitivity leaves, and their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from precision_lab.record.columns import CASE, Column, count

_GROUP = Column("group", "string", "", "sites altered together; of one site, its address")
_PAIR = (_GROUP, Column("candidate", "string", "", "technique that the sites were altered by"))

_MEASURED = (
    _GROUP,
    Column("component", "string", "", "component that the sites are in; - if in several"),
    Column("block", "Int64", "", "index of the block that the sites are in; null outside of blocks, or in several"),
    Column("operation", "string", "", "path of the sites inside their block; null if they differ"),
    Column("stream", "string", "", "residual stream that the sites belong to; - where there is none, or several"),
    _PAIR[1],
    *CASE,
    Column("step", "Int64", "", "number of the step, from 0"),
    Column("sigma", "float64", "", "level that belongs to the step; null where there is none"),
    Column(
        "local_error",
        "float64",
        "",
        "relative L2 error of the modules' outputs on the inputs of the plain model, root mean square over their calls",
    ),
    Column(
        "velocity_error",
        "float64",
        "",
        "relative L2 error of the model's output in the main branch, from the plain model's state before the step; "
        "null if it is not finite",
    ),
    count("num_nonfinite", "values of the model's output that are NaN or infinite"),
)
_SAVING = (
    Column("bytes_saved", "Int64", "bytes", "of the weights, as stored against as the candidate stores them"),
    count("num_sites", "sites of the group that the candidate fits"),
    count("num_recalled", "blocks that the pass took from the recording of the plain model"),
)
_DRIFT = Column(
    "free_drift",
    "float64",
    "",
    "relative L2 error of the last result of a whole generation with the candidate at the group; null where not "
    "measured, or not finite",
)
_SECONDS = Column(
    "seconds_saved",
    "float64",
    "s",
    "a step, in the main branch: median time of the plain modules minus that of the candidate's; null where not "
    "measured",
)

OF_A_SCAN: Mapping[str, Sequence[Column]] = {
    "sensitivity": (
        *_MEASURED,
        _DRIFT,
        *_SAVING,
        _SECONDS,
        Column(
            "noise_floor",
            "float64",
            "",
            "largest velocity_error of an equivalent rewrite at groups of this operation, in this case and step",
        ),
    ),
    "sensitivity_noise": (*_MEASURED, *_SAVING),
    "sensitivity_groups": (
        _GROUP,
        Column("site", "string", "", "address of a site of the group"),
        count("num_weights", "weights of its linear"),
        Column("stored_bits", "Int64", "bits", "of its weights as they are stored, scales included"),
    ),
    "sensitivity_unfit": (*_PAIR, Column("reason", "string", "", "why the candidate fits no site of the group")),
    "sensitivity_drift": (
        *_PAIR,
        *CASE,
        _DRIFT,
        count("num_nonfinite", "values of the last result that are not finite"),
    ),
    "sensitivity_seconds": (*_PAIR, _SECONDS),
}
"""The tables by name. The last two are parts that become columns of the first."""

SENSITIVITY, NOISE, GROUPS, UNFIT, DRIFT, SECONDS = OF_A_SCAN
KEPT = (SENSITIVITY, NOISE, GROUPS, UNFIT)
"""The tables of a complete scan."""

"""Op rules, one file per op family; importing the package fills the table."""

from fxprune.rules import (
    attention,
    conv,
    elementwise,
    fill,
    fourier,
    gather,
    indexing,
    linear,
    norm,
    recurrent,
    reduce,
    reshape,
    shape,
    size,
    spatial,
)
from fxprune.rules.registry import find_rule, rule

__all__ = [
    "attention",
    "conv",
    "elementwise",
    "fill",
    "find_rule",
    "fourier",
    "gather",
    "indexing",
    "linear",
    "norm",
    "recurrent",
    "reduce",
    "reshape",
    "rule",
    "shape",
    "size",
    "spatial",
]

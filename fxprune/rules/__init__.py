"""Op rules, one file per op family; importing the package fills the table."""

from fxprune.rules import (
    attention,
    conv,
    elementwise,
    indexing,
    linear,
    norm,
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
    "find_rule",
    "indexing",
    "linear",
    "norm",
    "reduce",
    "reshape",
    "rule",
    "shape",
    "size",
    "spatial",
]

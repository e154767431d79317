"""Op rules, one file a family; importing the package fills the table.

`registry` has the table, `op` and `rewrite` what rules work with, `state` and `parameters` what lies behind that. An op
without a rule is tried on small tensors (`probe`).
"""

from fxprune.rules import (
    attention,
    batch_norm,
    conv,
    cut,
    elementwise,
    fill,
    fourier,
    gather,
    indexing,
    join,
    layer_norm,
    linear,
    order,
    recurrent,
    reduce,
    repeat,
    reshape,
    size,
    spatial,
    weight_norm,
)
from fxprune.rules.op import UnsupportedCall
from fxprune.rules.registry import find_rule, rule
from fxprune.rules.rewrite import Call

__all__ = [
    "Call",
    "UnsupportedCall",
    "attention",
    "batch_norm",
    "conv",
    "cut",
    "elementwise",
    "fill",
    "find_rule",
    "fourier",
    "gather",
    "indexing",
    "join",
    "layer_norm",
    "linear",
    "order",
    "recurrent",
    "reduce",
    "repeat",
    "reshape",
    "rule",
    "size",
    "spatial",
    "weight_norm",
]

"""Op rules, one file a family; importing the package fills the table.

`registry` has the table, `op` and `rewrite` what rules work with, `state` and `parameters` what lies behind that. An op
without a rule is tried on small tensors (`probe`).
"""

# fmt: off
from fxprune.rules import (  # noqa: F401, I001
    attention, batch_norm, by_mode, conv, cut, elementwise, fill, fourier, gather, indexing, join, layer_norm, linear,
    memory, order, recurrent, reduce, repeat, reshape, response_norm, size, spatial, weight_norm,
)
# fmt: on
from fxprune.rules.op import UnsupportedCall
from fxprune.rules.registry import find_rule, rule
from fxprune.rules.rewrite import Call

__all__ = ["Call", "UnsupportedCall", "find_rule", "rule"]

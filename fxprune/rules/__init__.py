"""Op rules, one file per op family; importing the package fills the table."""

from fxprune.rules import attention, conv, elementwise, linear, norm, reduce, shape, spatial
from fxprune.rules.registry import find_rule, rule

__all__ = ["attention", "conv", "elementwise", "find_rule", "linear", "norm", "reduce", "rule", "shape", "spatial"]

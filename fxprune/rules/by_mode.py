"""A value that is one thing in training and another in eval: both carry the same channels."""

from __future__ import annotations

from typing import Any

from fxprune.channels import Labels, LabelTree
from fxprune.rules.op import Op, map_values
from fxprune.rules.registry import rule
from fxprune.running.mode_blocks import ChooseByMode, written_in_training

__all__: list[str] = []


@rule(ChooseByMode)
def choose(op: Op, train_value: Any, eval_value: Any) -> LabelTree:
    both = (train_value, eval_value)
    if not all(isinstance(x, Labels) for x in both) or train_value.shape != eval_value.shape:
        op.freeze(both, "another value in training")
        return map_values(op.value)
    dims = tuple(op.unite(*pair) for pair in zip(train_value.dims, eval_value.dims, strict=True))
    return Labels(dims, tuple(a and b for a, b in zip(train_value.zero, eval_value.zero, strict=True)))


@rule(written_in_training)
def written(op: Op, tensor: Labels, training: Any, data: bool = False) -> Labels:
    return tensor

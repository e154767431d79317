"""Calls of two recordings that are the same."""

from __future__ import annotations

from dataclasses import replace

import torch
from invariant import net
from torch import nn

from fxprune.tracing.pairing import partners
from fxprune.tracing.runs import Runner


def test_calls_of_both_modes_are_partners_and_others_have_none() -> None:
    model = net(
        lambda self, x: self.b((self.a(x).sin() if self.training else self.a(x)).relu()),
        a=nn.Linear(4, 8),
        b=nn.Linear(8, 2),
    )
    runner = Runner(model, (torch.randn(3, 4),), {}, True, {})
    in_eval, in_training = (each.record((), set()).builder for each in (runner, replace(runner, training=True)))
    found = partners(in_eval, in_training, shapes=True)
    assert [(theirs.target, ours.target) for theirs, ours in found.items()] == [(n, n) for n in ("a", "relu", "b")]

"""Values are left out of sums whose other side can take their place."""

from __future__ import annotations

from typing import Any

import pytest
from invariant import check_invariant, image, net
from mutate import attribute
from torch import Tensor, nn

from fxprune.errors import FxpruneError
from fxprune.rules import sums


def test_of_the_two_sides_of_a_sum_that_of_fewer_flops_stays() -> None:
    model = net(lambda self, x: self.head(self.a(x) + self.b(x)), a=nn.Conv2d(3, 4, 3, padding=1),
                b=nn.Conv2d(3, 4, 1), head=nn.Conv2d(4, 2, 1))  # fmt: skip
    graph = check_invariant(model, image(), plans=4)
    assert [(block.name, block.stays) for block in graph.blocks] == [("a", "b")]


def test_sums_in_place_in_a_row_are_left_out() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        out = self.a(x)
        for each in (self.b, self.c, self.d):
            out += each(x)
        return self.head(out.relu_())

    parts = {name: nn.Conv2d(3, 4, 1) for name in "abcd"}
    graph = check_invariant(net(forward, head=nn.Conv2d(4, 2, 1), **parts), image(), plans=6)
    assert len(graph.blocks) == 3


def test_what_is_one_sample_for_all_does_not_take_the_place_of_a_sum() -> None:
    model = net(lambda self, x: self.head(self.stem(x).mean(0, keepdim=True) + self.a(x)), stem=nn.Conv2d(3, 4, 1),
                a=nn.Conv2d(3, 4, 3, padding=1), head=nn.Conv2d(4, 2, 1))  # fmt: skip
    graph = check_invariant(model, image(batch=1))
    # The larger side is not the one that is left out.
    assert [block.name for block in graph.blocks] == ["stem"]


def test_a_broken_rule_for_sums_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(lambda self, x: self.head(self.stem(x).mean((2, 3), keepdim=True) + self.a(x)),
                a=nn.Conv2d(3, 4, 3), stem=nn.Conv2d(3, 4, 1), head=nn.Conv2d(4, 2, 1))  # fmt: skip
    check_invariant(model, image(), plans=3)
    attribute(sums, "_why_not_alike", lambda *given: "")(monkeypatch)
    with pytest.raises((AssertionError, FxpruneError)):
        check_invariant(model, image(), plans=3)

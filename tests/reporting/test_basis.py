"""What is known of a pruned model with and without its original."""

from __future__ import annotations

import pytest
from torch import nn

import fxprune


def test_another_model_is_refused(small: nn.Module) -> None:
    with pytest.raises(fxprune.FxpruneError, match="is not what this Residual was pruned from"):
        fxprune.report(small, original=nn.Conv2d(3, 4, 1), measure=False)
    with pytest.raises(fxprune.FxpruneError, match="has no plan"):
        fxprune.report(nn.Conv2d(3, 4, 1))


def test_without_the_original_the_pruned_model_tells_what_it_can(small: nn.Module, made: fxprune.Report) -> None:
    alone = fxprune.report(small, measure=False)
    assert alone.certificate is None
    assert alone.memory[0] is None
    assert (alone.flops, alone.parameters) == (made.flops, made.parameters)
    assert [(group.name, group.channels) for group in alone.groups] == [(g.name, g.channels) for g in made.groups]
    known = {layer.name: layer.flops for layer in made.layers if layer.wide}
    assert {layer.name: layer.flops for layer in alone.layers if layer.wide} == known
    assert "needs the original" in alone.to_html()

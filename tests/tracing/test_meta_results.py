"""Results on the meta device are remembered, unless they may differ for the same layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from invariant import image, net, tokens
from torch import Tensor, fx, nn

from fxprune import trace
from fxprune.tracing.meta_results import call_key, leaf_key


def _last_value(model: nn.Module, x: Tensor) -> Any:
    nodes: list[fx.Node] = list(trace(model.eval(), x).graph.nodes)
    return nodes[-2].meta["value"]


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_a_slice_between_tensors_has_its_own_size() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        sizes = torch.tensor(x.shape)
        first = sizes[[slice(torch.tensor(0), torch.tensor(1), 1)]]
        rest = sizes[[slice(torch.tensor(1), torch.tensor(3), 1)]]
        assert (first.shape, rest.shape) == ((1,), (2,))
        return self.a(x) + first

    trace(net(forward, a=nn.Linear(4, 4)), tokens())


@pytest.mark.parametrize("read", [lambda mask: mask.nonzero(), lambda mask: torch.masked_select(mask, mask)])
def test_what_the_values_of_a_buffer_give_has_its_own_size(read: Any) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return self.a(x) + read(self.mask).sum(), read(self.mask)

    for count in (2, 3):
        model = net(forward, a=nn.Linear(4, 4), mask=torch.arange(4) < count)
        assert len(_last_value(model, tokens())) == count


def test_settings_of_modules_in_lists_are_settings() -> None:
    for size in (2, 3):
        assert (
            _last_value(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d([size, size])), image()).shape[-1]
            == size
        )


def test_types_depend_on_the_default_type() -> None:
    model = net(lambda self, x: (self.a(x), torch.zeros(3))[1], a=nn.Linear(4, 4))
    for dtype in (torch.float32, torch.float64):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            assert _last_value(model, tokens()).dtype == dtype
        finally:
            torch.set_default_dtype(before)


def test_an_argument_that_may_hold_values_is_no_part_of_a_key() -> None:
    assert call_key(torch.add, (tokens(), 2, [slice(1, None)])) is not None
    for value in (object(), {1, 2}, tokens().numpy(), nn.ReLU(), lambda: 2):
        assert call_key(torch.add, (tokens(), value)) is None
    layer = nn.ReLU()
    assert leaf_key(layer, (), ()) is not None
    layer.helper = object()
    assert leaf_key(layer, (), ()) is None


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(3), nn.GRU(4, 4), nn.LayerNorm(4), nn.Upsample()])
def test_layers_of_torch_are_remembered(layer: nn.Module) -> None:
    assert leaf_key(layer, (), ()) is not None

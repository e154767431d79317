"""Results on the meta device are remembered, unless they may differ for the same layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from invariant import image, net, tokens
from same_model import assert_same
from torch import Tensor, fx, nn

from fxprune import trace
from fxprune.running import trees
from fxprune.tracing.meta_results import call_key, leaf_key, of_one_step, recall, remember


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


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bidirectional": True, "num_layers": 2}])
@pytest.mark.parametrize("shape", [(5, 2, 3), (1, 2, 3), (5, 3)])
def test_one_step_of_a_recurrent_layer_gives_the_layout_of_all(
    kind: Any, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    layer = kind(3, 4, **options).to("meta")
    steps: list[int] = []

    def call(x: Tensor, state: Any) -> Any:
        steps.append(x.numel())
        return layer(x, state)

    found, expected = of_one_step(layer, call)(input=meta(*shape)), layer(meta(*shape))
    for one, other in zip(trees.tensors(found), trees.tensors(expected), strict=True):
        assert (one.shape, one.stride(), one.requires_grad) == (other.shape, other.stride(), other.requires_grad)
    first = 1 if options.get("batch_first") and len(shape) == 3 else 0
    assert steps == [meta(*shape).numel() // shape[first]]


def test_a_result_is_recalled_as_a_new_tensor_of_the_same_layout() -> None:
    key, value = call_key("a test of results", (meta(2, 3),)), (meta(4, 2).t(), [meta(1)])
    assert recall(key) is None
    remember(key, value, [meta(2, 3)], [], False)
    found = recall(key)
    assert found is not None
    assert (found.same_as, found.written) == (None, ())
    (first, (second,)) = found.value
    assert (first.shape, first.stride(), second.shape) == ((2, 4), (1, 2), (1,))
    assert first is not value[0]


def test_a_call_in_place_is_recalled_by_the_number_of_its_tensor() -> None:
    key, x, y = call_key("a test of calls in place", ()), meta(2), meta(2)
    remember(key, y, [x, y], [y], False)
    found = recall(key)
    assert found is not None
    assert (found.value, found.same_as, found.written) == (None, 1, (1,))


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, True), (1, 1.0), (meta(2, 3), meta(3, 2)), (meta(2, 2), meta(2, 2).t()), ((1,), [1]), (slice(1), slice(2))],
)
def test_arguments_that_may_give_other_layouts_have_other_keys(one: Any, other: Any) -> None:
    assert call_key(torch.add, (one,)) != call_key(torch.add, (other,))


def test_what_cannot_be_hashed_has_no_key() -> None:
    assert call_key(torch.add, ({1: object()},)) is None
    remember(None, meta(2), [], [], False)
    assert recall(None) is None


def test_the_key_of_a_layer_has_its_settings_and_its_tensors() -> None:
    def key(module: nn.Module) -> Any:
        return leaf_key(module, (), (meta(2, 3),))

    assert key(nn.Conv2d(3, 4, 3)) == key(nn.Conv2d(3, 4, 3)) is not None
    assert key(nn.Conv2d(3, 4, 3)) != key(nn.Conv2d(3, 4, 3, stride=2))
    assert key(nn.Linear(3, 4)) != key(nn.Linear(3, 5))
    assert key(net(lambda self, x: x)) is None


def filled(self: Any, x: Tensor) -> Tensor:
    value = self.value.to(x.dtype)
    return torch.full((2,), value) + torch.full_like(x[0], value) + x.new_full((2,), value) + x.cpu()


def test_tensors_are_filled_with_the_value_of_a_tensor() -> None:
    model = net(filled, value=torch.tensor(3.0))
    assert_same(model, trace(model, torch.randn(2, 2)), torch.randn(2, 2))


def test_the_window_of_istft_is_not_checked_on_the_meta_device() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        spectrum = torch.stft(x, 8, window=self.window, return_complex=True)
        return torch.istft(spectrum, 8, window=self.window)

    model = net(forward, window=torch.hann_window(8))
    assert_same(model, trace(model, torch.randn(2, 32)), torch.randn(2, 32))

"""How the model is called, and what it sees while it is recorded."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from invariant import net
from same_model import make
from torch import Tensor, nn

from fxprune.errors import FxpruneError, FxpruneWarning
from fxprune.flops import count_flops
from fxprune.tracing.attempts import AS_EXPORTED
from fxprune.tracing.notes import trace_notes
from fxprune.tracing.tracer import trace, trace_knowing


class Positional(nn.Module):
    def forward(self, first: Tensor, *tensors: Tensor) -> Tensor:
        for tensor in tensors:
            first = first * tensor
        return first


def test_variadic_arguments() -> None:
    traced = trace(Positional(), (torch.ones(2), torch.ones(2)))
    x, y = torch.randn(2), torch.randn(2)
    assert torch.equal(traced(x, y), x * y)


def test_inputs_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(FxpruneError, match="do not fit"):
        trace(nn.Sequential(nn.ReLU()), (torch.randn(2), torch.randn(2)))
    with pytest.raises(FxpruneError, match="conv1"):
        trace(make("test_resnet"), torch.randn(1, 7, 64, 64))


class AsksWhetherItIsCompiled(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and (0.0 in mask[[-1]] or mask.all()):
            return x.relu() if mask.all() else (x * mask[:, None]).relu()
        return (x * mask[:, None]).relu()


def test_a_way_that_a_model_has_for_export_is_taken_where_the_other_depends_on_values() -> None:
    x, masks = torch.randn(2, 3), (torch.ones(2), torch.tensor([1.0, 0.0]))
    traced = trace(AsksWhetherItIsCompiled(), (x, masks[0]))
    for given in masks:
        assert torch.equal(traced(x, given), AsksWhetherItIsCompiled()(x, given))
    assert list(trace_notes(traced).remarks) == [AS_EXPORTED]
    assert not torch.compiler.is_compiling()


def test_a_way_for_export_that_costs_otherwise_is_warned_of() -> None:
    class CostsMore(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            if not torch.compiler.is_compiling() and mask.all():
                return self.layer(x)
            return self.layer(self.layer(x)) * 0 + self.layer(x)

    with pytest.warns(FxpruneWarning, match=r"torch\.export, .* has 54 FLOPs, .* takes 18\. Budgets"):
        traced = trace(CostsMore(), (torch.randn(2, 3), torch.ones(2)))
    assert count_flops(traced, (torch.randn(2, 3), torch.ones(2))) == 54


def test_the_way_for_compile_is_taken_where_the_one_for_export_costs_otherwise() -> None:
    class CostsMoreWhereExported(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            y = x if not torch.compiler.is_compiling() and mask.all() else x * mask[:, None]
            return self.layer(y) if not torch.compiler.is_exporting() else self.layer(y) + self.layer(y) * 0

    model, x, masks = CostsMoreWhereExported(), torch.randn(2, 3), (torch.ones(2), torch.tensor([1.0, 0.0]))
    traced = trace(model, (x, masks[0]))
    for given in masks:
        assert torch.equal(traced(x, given), model(x, given))
    assert count_flops(traced, (x, masks[0])) == count_flops(model, (x, masks[0])) == 18
    known = trace_notes(traced)
    (remark,) = known.remarks
    assert remark.startswith("Traced as for torch.compile")
    again = trace_knowing(model.to("meta"), (x.to("meta"), masks[0].to("meta")), known.values_read)
    assert again.code == traced.code
    assert not torch.compiler.is_compiling()


def test_a_model_without_a_way_for_export_is_refused_for_its_own_reason() -> None:
    class Asks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu() if x.sum() > 0 else x

    with pytest.raises(FxpruneError, match="asks for the value of a tensor that depends on the model's input"):
        trace(Asks(), torch.randn(2, 3))


def masked_at_random(self: Any, x: Tensor) -> Tensor:
    x = self.layer(x)
    if self.training:
        x = x * torch.from_numpy(np.random.rand(8) > 0.3) + random.random()  # noqa: NPY002
    return nn.functional.dropout(x, 0.5, self.training)


def test_random_numbers_of_numpy_and_python_are_no_constants_of_training() -> None:
    x = torch.randn(2, 4)
    state = random.getstate()
    with pytest.warns(FxpruneWarning, match="for `Net`: other code runs .* It draws random numbers from NumPy or Pyth"):
        traced = trace(net(masked_at_random, layer=nn.Linear(4, 8)), x)
    assert random.getstate() == state
    with pytest.warns(FxpruneWarning, match="It draws random numbers"):
        out = traced.train()(x)
    # Dropout is there all the same.
    assert ((out == 0) | torch.isclose(out, 2 * traced.eval()(x))).all()


class OwnMode(nn.Module):
    """Knows its mode by another name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.learns = nn.Linear(4, 4), True

    def train(self, mode: bool = True) -> OwnMode:
        self.learns = mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * (2.0 if self.learns else 1.0)  # type: ignore[no-any-return]


def test_a_mode_that_train_keeps_elsewhere_is_followed() -> None:
    model, x = nn.Sequential(OwnMode(), OwnMode(), nn.Linear(4, 2)), torch.randn(3, 4)
    traced = trace(model.eval(), x)
    for made in (model, traced):
        made.train().get_submodule("1").eval()
    assert torch.equal(traced(x), model(x))
    for training in (True, False):
        assert torch.equal(traced.train(training)(x), model.train(training)(x))

"""A model runs in float64, whatever it casts to, and nothing of that is left behind."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from invariant import net, tokens
from torch import Tensor, nn

from fxprune.running.copies import copy_module
from fxprune.running.double import outputs_in_double
from fxprune.running.randomness import random_state


def test_casts_constants_and_plain_attributes_are_float64_inside_and_as_before_outside() -> None:
    def forward(self: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        return self.a(x.half()), torch.ones(2, dtype=torch.float32), torch.FloatTensor([0.1]) * self.gain, x.float()

    model = net(forward, a=nn.Linear(4, 2))
    vars(model)["gain"] = torch.ones(1)
    types, dtype = torch.FloatTensor, torch.get_default_dtype()
    outputs = outputs_in_double(copy_module(model), (tokens(),), {})
    assert {output.dtype for output in outputs} == {torch.float64}
    assert (torch.FloatTensor, torch.get_default_dtype()) == (types, dtype)
    assert model.a.weight.dtype is torch.float32


def test_random_numbers_are_the_same_in_each_run_and_the_global_state_is_kept() -> None:
    model = net(
        lambda self, x: self.a(x) + torch.rand(2) + np.random.rand() + random.random(),  # noqa: NPY002
        a=nn.Linear(4, 2),
    )
    state, others = torch.get_rng_state(), random_state()
    first, second = (outputs_in_double(copy_module(model), (tokens(),), {})[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert random_state() == others


def test_in_training_uniform_draws_are_the_likelier_of_what_follows_from_them() -> None:
    model = net(lambda self, x: self.a(x) * (torch.rand([]) > 0.1) * (torch.rand(1) > 0.4), a=nn.Linear(4, 2))
    for _ in range(20):
        (output,) = outputs_in_double(copy_module(model), (tokens(),), {}, training=True)
        torch.testing.assert_close(output, model.a(tokens()).double().detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "shapes", [((8, 16), (3, 16, 8)), ((3, 8, 16), (16, 8)), ((8, 16), (16, 8)), ((3, 8, 16), (3, 16, 8))]
)
def test_grouped_products_run_in_double_though_torch_has_them_for_narrow_types_alone(
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    left, right = (torch.randn(shape) for shape in shapes)
    offs = None if left.ndim == right.ndim == 3 else torch.tensor([3, 5, 8], dtype=torch.int32)
    product = net(lambda self, a, b: torch.nn.functional.grouped_mm(a, b, offs=offs))
    [double] = outputs_in_double(product, (left, right), {})
    assert double.dtype == torch.float64
    assert torch.allclose(product(left, right), double.float(), atol=1e-5)

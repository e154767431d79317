"""Ridge regression per conv group, with held-out rows that choose."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxprune.compensation.ridge import Rows, _gram, _product, solve

RANDOM = torch.Generator().manual_seed(0)


def rows(count: int, true: Tensor, offset: float = 0.0, noise: float = 0.0) -> Rows:
    """Inputs, and residuals that are a linear function of them, per conv group."""
    x = torch.randn(count, true.shape[0], true.shape[2], generator=RANDOM, dtype=torch.float64)
    y = torch.einsum("rgi,goi->rgo", x, true) + offset
    return Rows(x, y + noise * torch.randn(y.shape, generator=RANDOM, dtype=torch.float64))


@pytest.fixture
def true() -> Tensor:
    return torch.randn(2, 3, 4, generator=RANDOM, dtype=torch.float64)


def test_with_little_damping_the_linear_function_is_found(true: Tensor) -> None:
    found = solve(rows(200, true, offset=0.5), rows(0, true), [1e-9], centre=True)
    assert found is not None
    torch.testing.assert_close(found.change, true.reshape(6, 4), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.intercept, torch.full((6,), 0.5, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    uncentred = solve(rows(200, true), rows(0, true), [1e-9], centre=False)
    assert uncentred is not None
    assert not uncentred.intercept.any()


@pytest.mark.parametrize("count", [30, 3], ids=["more rows than inputs", "fewer"])
def test_it_is_the_minimum_of_the_ridge_loss(true: Tensor, count: int) -> None:
    fit = rows(count, true, noise=0.3)
    found = solve(fit, rows(0, true), [0.5], centre=False)
    assert found is not None
    for g in range(2):
        x, y = fit.inputs[:, g], fit.residuals[:, g]
        damping = 0.5 * x.square().sum(0).mean()
        expected = torch.linalg.solve(x.T @ x + damping * torch.eye(4), x.T @ y).T
        torch.testing.assert_close(found.change[3 * g : 3 * g + 3], expected)


def test_held_out_rows_choose_the_damping_or_none(true: Tensor) -> None:
    held = rows(200, true)
    found = solve(rows(200, true), held, [1e-6, 10.0], centre=False)
    assert found is not None
    assert found.damping == 1e-6
    # Few rows of noise: the stronger damping does less harm.
    found = solve(rows(8, 0.3 * true, noise=2.0), rows(200, 0.3 * true), [1e-6, 10.0], centre=False)
    assert found is None or found.damping == 10.0
    assert solve(rows(200, -true), held, [1e-6, 10.0], centre=False) is None


def test_inputs_that_depend_on_each_other_need_damping(true: Tensor) -> None:
    x = torch.ones(20, 2, 4, dtype=torch.float64)
    found = solve(Rows(x, torch.ones(20, 2, 3, dtype=torch.float64)), rows(0, true), [0.0, 1e-3], centre=False)
    assert found is not None
    assert found.damping in (0.0, 1e-3)
    assert found.change.isfinite().all()


@pytest.mark.parametrize(("groups", "width"), [(1, 300), (2, 257), (3, 5)])
def test_the_products_of_inputs_are_what_they_were_for_wide_layers(groups: int, width: int) -> None:
    x = torch.randn(groups, 2000, width, generator=RANDOM)
    torch.testing.assert_close(_gram(x), _product(x, x), rtol=1e-6, atol=1e-4)

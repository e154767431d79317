"""Random numbers: the caller's generators are left alone, and seeds tell positions apart."""

from __future__ import annotations

import random
from contextlib import suppress

import numpy as np
import torch

from fxprune.running.randomness import derive_seed, preserve_rng_state, reseed


def _draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_the_callers_generators_go_on_as_if_nothing_was_drawn() -> None:
    reseed(3)
    expected = [_draw(), _draw()]
    reseed(3)
    first = _draw()
    with suppress(ZeroDivisionError), preserve_rng_state():
        reseed(4)
        _draw()
        raise ZeroDivisionError
    assert [first, _draw()] == expected


def test_each_position_of_a_run_draws_its_own_numbers_again() -> None:
    with preserve_rng_state():
        drawn = {}
        for position in ((), (0,), (1,), (0, 0), (0, 1)):
            reseed(0, *position)
            drawn[position] = _draw()
        assert len(set(drawn.values())) == len(drawn)
        reseed(0, 0, 1)
        assert _draw() == drawn[0, 1]


def test_a_seed_is_a_number_that_torch_takes_and_tells_its_numbers_apart() -> None:
    seeds = [derive_seed(*numbers) for numbers in ((), (0,), (1,), (1, 0), (0, 1), (-1,), (2**63,))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 2) == derive_seed(1, 2)

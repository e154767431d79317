"""Tensors that are plain attributes: where they are, and how they are put and forgotten."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxprune.tracing.constants import constant_name, forget, is_constant, place_of_tensor, put, tensor_at


class Tables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = torch.zeros(2)
        self.cache: dict[str, list[Tensor]] = {"a": [torch.ones(2)]}


PLACES = [("inner", "table"), ("inner", "cache", "a", 0)]


def model() -> nn.Module:
    outer = nn.Module()
    outer.inner = Tables()
    return outer


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_is_found_at_its_place(place: tuple[str, ...]) -> None:
    owner = model()
    tensor = tensor_at(owner, place)
    assert tensor is not None
    assert place_of_tensor(owner, tensor) == place
    assert place_of_tensor(owner, tensor.clone()) is None


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_is_put_in_place_of_another(place: tuple[str, ...]) -> None:
    owner, tensor = model(), torch.arange(3)
    put(owner, place, tensor)
    assert tensor_at(owner, place) is tensor


def test_a_tensor_is_appended_to_a_list() -> None:
    owner, tensor = model(), torch.arange(3)
    put(owner, ("inner", "cache", "a", 1), tensor)  # type: ignore[arg-type]
    assert tensor_at(owner, ("inner", "cache", "a", 1)) is tensor  # type: ignore[arg-type]


def test_a_tensor_takes_the_place_of_nothing_else_than_a_tensor() -> None:
    owner = model()
    put(owner, ("inner", "cache"), torch.zeros(1))
    put(owner, ("inner", "forward"), torch.zeros(1))
    put(owner, ("elsewhere", "table"), torch.zeros(1))
    assert isinstance(owner.inner.cache, dict)
    assert "forward" not in vars(owner.inner)


def test_what_init_made_becomes_none_and_other_tensors_go() -> None:
    owner = model()
    owner.inner.late = torch.zeros(1)
    for place in (*PLACES, ("inner", "late"), ("inner", "nothing")):
        forget(owner, place)
    assert owner.inner.table is None
    assert owner.inner.cache == {"a": []}
    assert "late" not in vars(owner.inner)


def test_names_of_constants_are_recognised_with_and_without_a_path() -> None:
    assert is_constant(constant_name(3))
    assert is_constant(f"a.b.{constant_name(0)}")
    assert not is_constant("a.weight")

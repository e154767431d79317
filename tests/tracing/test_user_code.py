"""The user's code among the frames of torch and fxprune."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from invariant import net
from torch import Tensor, nn

from fxprune import FxpruneError, trace
from fxprune.tracing.user_code import place_of, user_frame


def test_the_frame_is_that_of_the_code_that_calls_torch() -> None:
    frames = []

    class Asks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            frames.append(user_frame())
            return x

    nn.Sequential(Asks())(torch.zeros(1))
    (frame,) = frames
    assert frame is not None
    assert frame.f_code is Asks.forward.__code__


def test_an_error_of_torch_is_placed_where_the_user_calls_torch() -> None:
    try:
        nn.Linear(2, 2)(torch.zeros(3))
    except RuntimeError as error:
        place, line = place_of(error)
    assert place.startswith(f"{__file__}:")
    assert line == "nn.Linear(2, 2)(torch.zeros(3))"


def test_an_error_without_the_user_s_code_has_no_place() -> None:
    assert place_of(ValueError()) == ("", "")


def test_a_model_from_the_prompt_or_from_a_text_is_the_user_s_code_too() -> None:
    code = "def forward(self, x):\n    return self.a(x * 2 if not x.is_contiguous() else x)"
    for file in ("<stdin>", "<string>", "<ipython-input-1-0>"):
        names: dict[str, Any] = {}
        exec(compile(code, file, "exec"), names)
        traced = trace(net(names["forward"], a=nn.Linear(4, 2)), torch.zeros(4, 4))
        with pytest.raises(FxpruneError, match="is_contiguous` is False here"):
            traced(torch.zeros(4, 4).t())

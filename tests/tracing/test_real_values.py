"""Values that the model's code asks for."""

from __future__ import annotations

import torch
from same_model import assert_same
from torch import Tensor, nn

from fxprune.tracing.notes import trace_notes
from fxprune.tracing.tracer import trace


class CausalByValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], device=x.device).tril()
        return x * 2 if bool((mask == mask.tril()).all()) else x


def test_control_flow_on_what_only_the_sizes_of_the_input_tell_is_taken_as_a_constant() -> None:
    traced = trace(CausalByValue(), torch.randn(2, 3))
    assert_same(CausalByValue(), traced, torch.randn(2, 3))
    assert any("was taken as a constant" in note for note in trace_notes(traced).remarks)


class UpToTheLongest(nn.Module):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        longest = lengths.max().item()
        return x[:, :longest] * (torch.arange(longest) < lengths[:, None])


def test_a_length_that_the_input_gives_is_computed_by_the_graph() -> None:
    x = torch.randn(2, 5)
    traced = trace(UpToTheLongest(), (x, torch.tensor([2, 4])))
    for lengths in (torch.tensor([2, 4]), torch.tensor([3, 1])):
        assert torch.equal(traced(x, lengths), UpToTheLongest()(x, lengths))
    (note,) = trace_notes(traced).remarks
    assert note.endswith("control flow that depends on it is that of the example input.")

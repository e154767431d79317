"""Copies and pickles of a traced model are complete."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from same_model import assert_same, make
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fxprune.tracing.traced_module import copy_to_run
from fxprune.tracing.tracer import trace


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_copies_and_pickles_are_complete(name: str) -> None:
    model = make(name, drop_rate=0.1)
    size = model.default_cfg["input_size"]  # type: ignore[index]
    traced = trace(model, torch.randn(1, *size))
    for twin in (copy.deepcopy(traced), pickle.loads(pickle.dumps(traced)), copy.deepcopy(copy.deepcopy(traced))):
        assert_same(model, twin, torch.randn(2, *size))
        assert [node.name for node in twin.graph.nodes] == [node.name for node in traced.graph.nodes]
        assert all("value" in node.meta and "module" in node.meta for node in twin.graph.nodes)
        assert twin.meta.keys() == traced.meta.keys()
        assert not set(map(id, twin.parameters())) & set(map(id, traced.parameters()))


def test_a_copy_to_run_has_the_same_graph_and_tensors_of_its_own() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(), torch.randn(2, 3, 5, 5)
    traced = trace(model, x)
    twin, before = copy_to_run(traced), copy.deepcopy(traced.state_dict())
    assert twin.graph is traced.graph
    assert_same(model, copy.deepcopy(twin), x)
    twin.double().train()(x.double())
    for name, tensor in traced.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not traced.get_submodule("1").training


def test_a_graph_with_packed_sequences_is_pickled() -> None:
    class Packing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 6, batch_first=True)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]

    model, inputs = Packing().eval(), (torch.randn(2, 5, 4), torch.tensor([3, 5]))
    again = pickle.loads(pickle.dumps(trace(model, inputs)))
    assert torch.equal(again(*inputs), model(*inputs))
    assert torch.equal(copy.deepcopy(again)(*inputs), model(*inputs))

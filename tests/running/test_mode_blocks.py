from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from invariant import net, tokens
from torch import Tensor, fx, nn

from fxprune import FxpruneError, trace
from fxprune.running.mode_blocks import ChooseByMode, chooses, modes_of


def _in_training_or_eval(self: Any, x: Tensor) -> tuple[Tensor, ...]:
    x = self.a(x)
    if self.training:
        return x, self.b(x.relu()).tanh()
    return (x - self.c(x),)


def _traced() -> fx.GraphModule:
    return trace(net(_in_training_or_eval, a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 4)), tokens())


def _called(model: nn.Module) -> list[str]:
    names: list[str] = []
    handles = [
        part.register_forward_hook(lambda *_, name=name: names.append(name)) for name, part in model.named_children()
    ]
    model(tokens())
    for handle in handles:
        handle.remove()
    return [name for name in names if len(name) == 1]


def test_what_runs_in_one_mode_is_not_called_in_the_other() -> None:
    traced = _traced()
    for made in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        assert _called(made.train()) == ["a", "b"]
        assert _called(made.eval()) == ["a", "c"]


def test_a_graph_knows_what_runs_in_one_mode() -> None:
    graph = _traced().graph
    modes = {node.name: training for node, (_, training) in modes_of(graph).items()}
    assert (modes["b"], modes["tanh"], modes["c"], modes.get("a")) == (True, True, False, None)
    assert sum(map(chooses, graph.nodes)) == 1


def test_nodes_of_one_mode_that_follow_each_other_share_a_block_and_forget_what_they_need_no_more() -> None:
    code = _traced().code
    assert code.count("if self.by_mode.training:") == code.count("if not self.by_mode.training:") == 1
    assert "relu = None" in code


def test_a_graph_runs_node_by_node_in_both_modes() -> None:
    traced = _traced()
    for training in (True, False):
        traced.train(training)
        torch.testing.assert_close(fx.Interpreter(traced).run(tokens()), traced(tokens()), rtol=0, atol=0)


def test_values_of_a_mode_that_did_not_run_are_refused() -> None:
    choose = ChooseByMode().train()
    assert choose(1, ...) == 1
    with pytest.raises(FxpruneError, match="call train\\(\\) or eval\\(\\) of the whole model"):
        choose(..., 1)

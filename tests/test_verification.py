"""The invariant as a function: small when right, large when anything is wrong."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import image, net, plan_for, randomise, tokens
from refusals import small
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError
from fxprune.provenance import pruning_notes
from fxprune.running.copies import copy_module
from fxprune.verification import TOLERANCE, largest_error, mask, relative_error, verify_structure


def pair() -> tuple[nn.Module, torch.fx.GraphModule]:
    model = randomise(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sigmoid(), nn.Conv2d(8, 2, 1))).float()
    return model, fxprune.prune(model, 0.5, example_inputs=image(), compensate=False)


def test_a_right_result_is_off_by_rounding_only() -> None:
    model, pruned = pair()
    assert fxprune.verify(model, pruned, image()) <= 1e-12
    assert fxprune.verify(model, pruned) <= 1e-12, "the example inputs are remembered"


def test_what_a_model_makes_in_single_precision_whatever_its_own_is_compared_in_double() -> None:
    model = net(
        lambda self, x: self.b(self.a(x) * torch.sqrt(torch.FloatTensor([0.3]))), a=nn.Linear(4, 6), b=nn.Linear(6, 2)
    )
    assert fxprune.verify(model, fxprune.prune(model, 0.5, example_inputs=tokens(width=4), compensate=False)) <= 1e-12


def test_in_training_dropout_is_off_and_batch_norm_takes_the_statistics_of_the_batch() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        attended, _ = self.m(self.d(self.a(x)), self.a(x), self.a(x))
        return self.o(self.r(F.dropout(attended, 0.5, self.training))[0])

    model = net(
        forward,
        a=nn.Linear(4, 8),
        d=nn.Dropout(),
        m=nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True),
        r=nn.GRU(8, 6, 2, dropout=0.5, batch_first=True),
        o=nn.Linear(6, 2),
    )
    pruned = fxprune.prune(randomise(model), 0.6, example_inputs=tokens().double(), compensate=False)
    assert fxprune.verify(model, pruned, training=True) <= 1e-12
    model, pruned = pair()
    assert fxprune.verify(model, pruned, training=True) <= 1e-12
    pruned.register_forward_hook(lambda module, inputs, output: output * (2 if module.training else 1))
    assert fxprune.verify(model, pruned) <= 1e-12
    assert fxprune.verify(model, pruned, training=True) > 0.1


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x) + self.thirds(x.shape[1], x.dtype)[:, None])

    @staticmethod
    @functools.lru_cache
    def thirds(size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.arange(size, dtype=torch.float32).to(dtype) / 3


def test_caches_of_the_model_are_neither_read_nor_filled() -> None:
    model, x = Cached(), tokens()
    expected = model(x)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, compensate=False)
    assert fxprune.verify(model, pruned, x) <= 1e-12
    assert Cached.thirds.cache_info().currsize == 1
    assert torch.equal(model(x), expected)


def test_a_tensor_that_is_a_plain_attribute_is_taken_to_float64_too() -> None:
    model = net(
        lambda self, x: torch.einsum("bnc,n->bc", self.b(self.a(x)), self.weights), a=nn.Linear(4, 6), b=nn.Linear(6, 2)
    )
    vars(model)["weights"] = torch.rand(5)
    pruned = fxprune.prune(model, 0.5, example_inputs=tokens(), compensate=False)
    assert fxprune.verify(model, pruned, tokens()) <= 1e-12
    assert model.weights.dtype is torch.float32


def test_dropout_in_eval_too_is_off() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(F.dropout(self.a(x).relu(), 0.5, training=True))

    model = randomise(net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2))).float()
    x = torch.randn(16, 4)
    graph = fxprune.analyze(fxprune.trace(model, x))
    alive = graph.all_but(())
    alive[graph.groups[0].channels[:3]] = False
    pruned = fxprune.rewrite(graph, plan_for(graph, alive))
    assert fxprune.verify(model, pruned) < 1e-12
    assert not torch.equal(pruned.eval()(x), pruned(x))
    with torch.no_grad():
        pruned.get_parameter("b.weight").mul_(1.01)
    assert fxprune.verify(model, pruned) > 1e-3


def test_dropout_that_returns_its_mask_is_off() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(torch.native_dropout(self.a(x).relu(), 0.5, self.training)[0])

    model = randomise(net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2))).float()
    pruned = fxprune.prune(model, 0.6, example_inputs=torch.randn(5, 4), method="l2", compensate=False)
    assert fxprune.verify(model, pruned) < 1e-12
    assert fxprune.verify(model, pruned, training=True) < 1e-12


def test_noise_on_channels_that_go_is_the_same_on_those_that_stay() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.b(x + torch.randn_like(x)) * torch.rand(2)

    model = net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    pruned = fxprune.prune(model, 0.5, example_inputs=tokens(), compensate=False)
    state = torch.get_rng_state()
    assert fxprune.verify(model, pruned, tokens()) <= 1e-12
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_draws_random_numbers_is_compared_on_the_same_ones() -> None:
    model = net(lambda self, x: self.b(self.a(x + torch.randn_like(x))), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    pruned = fxprune.prune(model, 0.5, example_inputs=tokens(), compensate=False)
    state = torch.get_rng_state()
    assert fxprune.verify(model, pruned, tokens()) <= 1e-12
    assert torch.equal(torch.get_rng_state(), state)


def test_a_wrong_weight_is_noticed() -> None:
    model, pruned = pair()
    with torch.no_grad():
        pruned.get_parameter("3.weight")[0, 0] += 1e-3
    assert fxprune.verify(model, pruned, image()) > 1e-6


def test_a_result_that_is_not_a_number_is_infinitely_wrong() -> None:
    model, pruned = pair()
    with torch.no_grad():
        pruned.get_parameter("3.bias")[0] = float("nan")
    assert fxprune.verify(model, pruned, image()) == float("inf")


def test_another_shape_is_an_error() -> None:
    model, pruned = pair()
    pruned.get_submodule("3").stride = (2, 2)
    with pytest.raises(
        fxprune.FxpruneError, match=r"output has shape \(2, 2, 2, 2\), the original's has \(2, 2, 4, 4\)"
    ):
        fxprune.verify(model, pruned, image())


def test_neither_model_is_changed() -> None:
    model, pruned = pair()
    model.train()
    states = [copy.deepcopy(m.state_dict()) for m in (model, pruned)]
    fxprune.verify(model, pruned, image())
    assert model.training
    for m, state in zip((model, pruned), states, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in m.state_dict().items())


def test_the_mask_zeroes_what_the_plan_removes_and_nothing_else() -> None:
    model, pruned = pair()
    plan = fxprune.plan_of(pruned)
    masked = mask(model, plan).state_dict()
    for name, tensor in model.state_dict().items():
        expected = tensor.clone()
        for d, kept in plan.kept.get(name, {}).items():
            lost = [k for k in range(tensor.shape[d]) if k not in kept]
            expected.index_fill_(d, torch.tensor(lost), 0)
        assert torch.equal(masked[name], expected)


def test_a_model_that_divides_by_the_norm_of_what_was_removed_is_verified_in_the_limit() -> None:
    model = randomise(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)), nn.Tanh(), nn.Linear(8, 2)))
    pruned = fxprune.prune(model, 0.5, example_inputs=tokens().double(), compensate=False)
    assert fxprune.verify(model, pruned) <= 1e-12


def test_dicts_tuples_and_keyword_inputs_are_compared_leaf_by_leaf() -> None:
    model = randomise(
        net(
            lambda self, x, y: {"a": (self.b(self.a(x)), self.a(y).sum()), "n": 3}, a=nn.Linear(4, 8), b=nn.Linear(8, 2)
        )
    )
    inputs = {"x": tokens().double(), "y": tokens().double() + 1}
    assert fxprune.verify(model, fxprune.prune(model, 0.6, example_inputs=inputs, compensate=False), inputs) <= 1e-12


def test_of_a_compensated_model_the_structure_is_verified() -> None:
    model, _ = pair()
    pruned = fxprune.prune(model, 0.5, example_inputs=image(), data=[torch.randn(32, 3, 6, 6)])
    assert pruning_notes(pruned).compensated
    assert fxprune.verify(model, pruned) < 1e-9
    pruned.get_submodule("3").stride = (2, 2)
    with pytest.raises(fxprune.FxpruneError, match="output has shape"):
        fxprune.verify(model, pruned)
    with torch.no_grad():
        pruned.get_parameter("3.bias")[0] = float("inf")
    assert fxprune.verify(model, pruned) == float("inf")


class Remembers(nn.Module):
    """Keeps in eval what it has computed of its weights, until it trains, as attention with a table of biases does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.bias = nn.Parameter(torch.randn(8))
        self.kept: dict[str, torch.Tensor] = {}

    def train(self, mode: bool = True) -> Remembers:
        if mode:
            self.kept = {}
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and "bias" not in self.kept:
            self.kept["bias"] = self.bias.detach() / 3
        return self.last(self.first(x) + (self.bias / 3 if self.training else self.kept["bias"]))


@pytest.mark.filterwarnings("ignore:Only the code of eval is in the graph:fxprune.FxpruneWarning")
def test_what_a_model_keeps_of_an_earlier_pass_is_not_compared() -> None:
    torch.manual_seed(0)
    model, x = Remembers().eval(), torch.randn(1, 5, 4)
    pruned = fxprune.prune(model, 0.6, example_inputs=x, compensate=False)
    model(x)
    assert model.kept
    assert fxprune.verify(model, pruned, x) < 1e-12
    assert model.kept


def keeping(self: Any, x: Tensor) -> Tensor:
    self.state = self.a(x).relu()
    self.kept = {"state": [self.state, self.a.weight], "twice": (self.state,)}
    return self.b(self.state)


def test_a_model_that_keeps_what_it_has_computed_with_a_history_is_pruned_and_verified() -> None:
    model, x = net(keeping, a=nn.Linear(4, 8), b=nn.Linear(8, 2), state=torch.zeros(1)), torch.randn(3, 4)
    model(x)
    with pytest.warns(fxprune.FxpruneWarning, match="A buffer stays as it is"):
        pruned = fxprune.prune(model, 0.5, example_inputs=x, compensate=False)
    model(x)
    assert model.get_buffer("state").grad_fn is not None
    assert fxprune.verify(model, pruned, x) < 1e-9
    twin: Any = copy_module(model)
    assert twin.kept["state"][1] is twin.a.weight
    assert twin.kept["state"][0] is twin.kept["twice"][0] is twin.state
    torch.testing.assert_close(twin.state, model.get_buffer("state").detach(), rtol=0, atol=0)


def test_constants_that_forward_makes_in_a_type_of_their_own_keep_it() -> None:
    model = net(
        lambda self, x: self.b(self.a(x) * torch.sqrt(torch.FloatTensor([0.5]))), a=nn.Linear(4, 8), b=nn.Linear(8, 2)
    )
    x = torch.randn(3, 4)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, compensate=False)
    assert fxprune.verify(model, pruned, x) < 1e-12
    pruned.b.weight.data[0, 0] += 1e-5
    assert fxprune.verify(model, pruned, x) > 1e-9


def test_the_wrong_order_and_other_arguments_are_refused_with_the_call() -> None:
    model, pruned = pair()
    call = r"call verify\(original, pruned, example_inputs=None, \*, training=False\)$"
    with pytest.raises(fxprune.FxpruneError, match=rf"original was pruned and pruned was not.*{call}"):
        fxprune.verify(pruned, model)
    with pytest.raises(fxprune.FxpruneError, match=rf"missing a required argument: 'original': {call}"):
        fxprune.verify(model=model, pruned=pruned)


def test_the_structure_of_a_trained_model_is_verified_with_the_weights_of_the_cut() -> None:
    model, pruned = pair()
    with torch.no_grad():
        pruned.get_parameter("3.weight").add_(1)
    assert verify_structure(model, pruned) <= TOLERANCE < fxprune.verify(model, pruned)
    pruned.get_submodule("1").eps = 0.5
    assert verify_structure(model, pruned) > TOLERANCE
    with torch.no_grad():
        pruned.get_parameter("3.weight").fill_(float("nan"))
    assert verify_structure(model, pruned) == float("inf")


def test_errors_are_relative_to_the_largest_entry() -> None:
    assert relative_error(torch.tensor([2.0, -8.0]), torch.tensor([1.0, -8.0])) == 0.125
    assert relative_error(torch.zeros(0), torch.zeros(0)) == 0.0
    assert relative_error(torch.tensor([3j]), torch.tensor([4j])) == pytest.approx(1 / 3)
    assert relative_error(torch.ones(1), torch.tensor([float("nan")])) == float("inf")
    assert largest_error([torch.ones(1), torch.ones(2)], [torch.ones(1), torch.tensor([1.0, 1.5])]) == 0.5


def test_infinities_and_nan_must_be_the_same_and_the_rest_is_compared() -> None:
    inf, nan = float("inf"), float("nan")
    entries = torch.tensor([2.0, -inf, inf, nan, -8.0])
    assert relative_error(entries, entries.clone()) == 0.0
    assert relative_error(entries, torch.tensor([1.0, -inf, inf, nan, -8.0])) == 0.125
    for place, other in ((1, inf), (1, nan), (1, -8.0), (3, 0.0), (3, inf), (0, inf), (0, nan)):
        changed = entries.clone()
        changed[place] = other
        assert relative_error(entries, changed) == inf
        assert relative_error(changed, entries) == inf
    for value in (inf, -inf, nan):
        assert relative_error(torch.full((3,), value), torch.full((3,), value)) == 0.0
    assert relative_error(torch.tensor([complex(3, inf), 4j]), torch.tensor([complex(2, inf), 4j])) == 0.25
    assert relative_error(torch.tensor([complex(3, inf), 4j]), torch.tensor([complex(3, -inf), 4j])) == inf


def test_the_fill_of_a_mask_does_not_hide_errors() -> None:
    low = torch.finfo(torch.float32).min
    assert relative_error(torch.tensor([2.0, low]), torch.tensor([1.0, low])) == 0.5
    assert relative_error(torch.tensor([2.0, low]), torch.tensor([2.0, low / 2])) == 0.5
    assert relative_error(torch.tensor([2.0, low]), torch.tensor([2.0, 3.0])) == 1.0


@pytest.mark.parametrize(
    "head",
    [
        lambda x: x.masked_fill(torch.ones_like(x).tril() == 0, -torch.inf),
        lambda x: x.masked_fill(torch.ones_like(x).tril() == 0, torch.finfo(torch.float32).min),
        lambda x: x.relu().log(),
        lambda x: x.relu().log() * 0 + x,
        lambda x: {"all": x.abs() / 0, "none": x},
        lambda x: (x.masked_fill(x < x.amax(), torch.inf), x / x.relu()),
    ],
    ids=["mask", "lowest", "log", "nan", "all", "max"],
)
def test_outputs_with_infinities_are_compared_where_they_are_finite(head: Any) -> None:
    model = net(lambda self, x: head(self.b(self.a(x))), a=nn.Linear(4, 8), b=nn.Linear(8, 5))
    pruned = fxprune.prune(randomise(model), 0.5, example_inputs=tokens().double(), compensate=False)
    assert fxprune.verify(model, pruned) <= 1e-12
    with torch.no_grad():
        pruned.get_parameter("b.weight")[:, 0] += 1e-2
    assert fxprune.verify(model, pruned) > 1e-6


def test_a_limit_is_taken_only_of_what_the_mask_leaves_undefined() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(self.a(x)).masked_fill(torch.eye(2, dtype=torch.bool), -torch.inf)

    model = net(forward, a=nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)), b=nn.Linear(8, 2))
    x = torch.randn(2, 4)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, compensate=False)
    assert fxprune.verify(model, pruned, x) <= 1e-12
    with torch.no_grad():
        pruned.get_parameter("b.bias").fill_(float("nan"))
    assert fxprune.verify(model, pruned, x) == float("inf")


def test_inputs_may_have_been_computed_with_gradients() -> None:
    model = small()
    computed = image().requires_grad_() * 1.0
    for inputs in (computed, image().requires_grad_()):
        pruned = fxprune.prune(model, 0.7, example_inputs=inputs, compensate=False)
        assert fxprune.verify(model, pruned) < 1e-9
        assert fxprune.verify(model, pruned, inputs) < 1e-9


def test_another_model_than_the_one_that_was_pruned_is_not_verified() -> None:
    wide = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2))
    narrow = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    pruned = fxprune.prune(wide, 0.7, example_inputs=torch.randn(2, 3), compensate=False)
    with pytest.raises(FxpruneError, match=r"^0\.weight has shape \(4, 3\), .* not the model that was pruned$"):
        fxprune.verify(narrow, pruned)


def test_more_outputs_than_the_original_has_are_refused() -> None:
    with pytest.raises(FxpruneError, match="there are 2 outputs, and the original has 1"):
        largest_error([torch.zeros(2)], [torch.zeros(2), torch.zeros(2)])


def test_what_the_mask_leaves_undefined_may_have_been_compared_with_a_number() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        return torch.where(y > 0.0, y, torch.zeros_like(y))

    model = net(forward, a=nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)), b=nn.Linear(8, 2))
    x = torch.randn(5, 4)
    pruned = fxprune.prune(randomise(model), 0.5, example_inputs=x.double(), compensate=False)
    assert fxprune.verify(model, pruned) <= 1e-12
    with torch.no_grad():
        pruned.get_parameter("b.bias").add_(0.1)
    assert fxprune.verify(model, pruned) > 1e-3

"""Branches on types, contiguity and gradients hold as long as they go the same way; else the graph refuses."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from invariant import check_invariant, net
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError, FxpruneWarning, trace
from fxprune.tracing.checks import check_device, check_dtype, check_fact, check_grad_mode

CHECKS = (check_dtype, check_fact, check_grad_mode)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def parts() -> dict[str, nn.Module]:
    return {"f": nn.Linear(8, 8), "h": nn.Linear(8, 3)}


def checks_of(traced: Any) -> list[Any]:
    return [node.target for node in traced.graph.nodes if node.target in CHECKS]


def clamped_in_half(self: Any, x: Tensor) -> Tensor:
    y = self.f(x)
    if y.dtype == torch.float16:
        y = y.clamp(-1, 1)
    return self.h(y)  # type: ignore[no-any-return]


def in_low_precision(self: Any, x: Tensor) -> Tensor:
    y = self.f(x)
    return self.h(y.tanh() if y.dtype in (torch.float16, torch.bfloat16) else y)  # type: ignore[no-any-return]


def another_number(self: Any, x: Tensor) -> Tensor:
    y = self.f(x)
    return self.h(y + (0.5 if y.dtype == torch.float16 else 0.25))  # type: ignore[no-any-return]


def only_in_single(self: Any, x: Tensor) -> Tensor:
    kind = x.dtype
    return self.h(self.f(x).tanh() if kind is torch.float32 else self.f(x))  # type: ignore[no-any-return]


def of_any_float(self: Any, x: Tensor) -> Tensor:
    floats = x.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return self.h(self.f(x).tanh() if floats else self.f(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("forward", "refused", "taken"),
    [
        (clamped_in_half, (torch.float16,), (torch.float64, torch.bfloat16)),
        (in_low_precision, (torch.float16, torch.bfloat16), (torch.float64,)),
        (another_number, (torch.float16,), (torch.float64, torch.bfloat16)),
        (only_in_single, (torch.float16, torch.bfloat16, torch.float64), ()),
        (of_any_float, (), (torch.float16, torch.bfloat16, torch.float64)),
    ],
)
def test_a_type_for_which_the_code_does_something_else_is_refused(forward: Any, refused: Any, taken: Any) -> None:
    model, x = net(forward, **parts()).eval(), torch.randn(4, 8)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, compensate=False)
    for made in (trace(model, x), pruned, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned)), trace(pruned, x)):
        made(x)
        for dtype in refused:
            with pytest.raises(FxpruneError, match=r"\.dtype` is torch.*`Net` does something else"):
                copy.deepcopy(made).to(dtype)(x.to(dtype))
        for dtype in taken:
            copy.deepcopy(made).to(dtype)(x.to(dtype))
    if forward is not only_in_single:
        assert fxprune.verify(model, pruned) < 1e-9


def harmless(self: Any, x: Tensor) -> Tensor:
    y = self.f(x)
    if y.dtype != self.h.weight.dtype:
        y = y.to(self.h.weight.dtype)
    if not y.is_contiguous():
        y = y.contiguous()
    if y.requires_grad or torch.is_grad_enabled():
        assert y.dtype != torch.int64
    return self.h(y)  # type: ignore[no-any-return]


def test_questions_that_change_nothing_give_no_checks() -> None:
    check_invariant(net(harmless, **parts()), torch.randn(4, 8))
    traced = trace(net(harmless, **parts()), torch.randn(4, 8))
    assert checks_of(traced) == []
    for dtype in (torch.float64, torch.bfloat16):
        copy.deepcopy(traced).to(dtype)(torch.randn(4, 8, dtype=dtype))


def by_layout(self: Any, x: Tensor) -> Tensor:
    return self.h(self.f(x if x.is_contiguous() else x * 2))  # type: ignore[no-any-return]


def test_the_limits_of_a_type_are_no_other_way_to_go() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.f(x)
        if y.dtype in (torch.float16, torch.float32):
            return self.h(y.clamp(min=torch.finfo(y.dtype).min))  # type: ignore[no-any-return]
        return self.h(y.clamp(min=torch.finfo(y.dtype).min))  # type: ignore[no-any-return]

    assert not checks_of(trace(net(forward, **parts()), torch.randn(4, 8)))


def test_limits_of_types_that_the_code_names_are_another_way_to_go() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.f(x)
        return self.h(y.clamp(min=torch.finfo(torch.float16 if y.dtype == torch.float16 else torch.float32).min))  # type: ignore[no-any-return]

    traced = trace(net(forward, **parts()), torch.randn(4, 8))
    with pytest.raises(FxpruneError, match=r"`f\.dtype` is torch\.float16 here"):
        traced.half()(torch.randn(4, 8, dtype=torch.float16))


def in_single(self: Any, x: Tensor) -> Tensor:
    before = x.dtype
    x = x.to(torch.float32)
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True, dtype=torch.float32) + 1e-6)
    return self.h(self.f(x.to(before)))  # type: ignore[no-any-return]


def converted(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) * torch.ones(8, dtype=dtype)


def by_helper(self: Any, x: Tensor) -> Tensor:
    return self.h(self.f(converted(x.float(), x.dtype)))  # type: ignore[no-any-return]


def by_helper_in_single(self: Any, x: Tensor) -> Tensor:
    kind = torch.float32
    y = self.f(x)
    return self.h(converted(y, kind).to(y.dtype))  # type: ignore[no-any-return]


@pytest.mark.parametrize("forward", [in_single, by_helper, by_helper_in_single])
def test_types_that_are_kept_or_handed_on_are_those_of_the_tensors(forward: Any) -> None:
    model, x = net(forward, **parts()).eval(), torch.randn(4, 8)
    traced = trace(model, x)
    for made in (traced, trace(traced, x)):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            ours, theirs = (copy.deepcopy(each).to(dtype)(x.to(dtype)) for each in (made, model))
            assert ours.dtype == dtype
            assert torch.equal(ours, theirs)
    check_invariant(model, x)


def test_another_layout_is_refused_where_the_code_follows_it() -> None:
    model, x = net(by_layout, **parts()).eval(), torch.randn(4, 8)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, compensate=False)
    for made in (trace(model, x), pruned, trace(pruned, x)):
        assert made(x).shape == (4, 3)
        with pytest.raises(FxpruneError, match=r"`x.is_contiguous` is False here, and was True.*`Net`"):
            made(torch.randn(8, 4).t())


def by_gradient(self: Any, x: Tensor) -> Tensor:
    y = self.f(x)
    return self.h(y.tanh() if x.requires_grad else y)  # type: ignore[no-any-return]


def test_an_input_with_gradients_is_refused_where_the_code_follows_them() -> None:
    model, x = net(by_gradient, **parts()).eval(), torch.randn(4, 8)
    traced = trace(model, x)
    assert torch.equal(traced(x), model(x))
    with pytest.raises(FxpruneError, match=r"`x.requires_grad` is True here"):
        traced(x.clone().requires_grad_())


def by_grad_mode(self: Any, x: Tensor) -> Tensor:
    y = self.f(x)
    return self.h(y.tanh() if torch.is_grad_enabled() else y)  # type: ignore[no-any-return]


def test_eval_with_gradients_is_refused_where_the_code_follows_the_mode() -> None:
    model, x = net(by_grad_mode, **parts()).eval(), torch.randn(4, 8)
    traced = trace(model, x)
    assert torch.equal(traced.train()(x), model.train()(x))
    with torch.no_grad(), pytest.raises(FxpruneError, match=r"is_grad_enabled\(\)` is False here.*`Net`"):
        traced(x)
    model.eval()
    traced.eval()
    for made in (traced, copy.deepcopy(traced), trace(traced, x)):
        with torch.no_grad():
            assert torch.equal(made(x), model(x))
        with pytest.raises(FxpruneError, match=r"is_grad_enabled\(\)` is True here.*`Net`"):
            made(x)


class Noise(nn.Module):
    """Without layers, so that it stays whole: it is right in all modes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.tanh() if torch.is_grad_enabled() else x


def test_a_module_without_layers_that_follows_the_grad_mode_stays_whole() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), Noise(), nn.Linear(8, 3)).eval(), torch.randn(4, 8)
    traced = trace(model, x)
    assert torch.equal(traced(x), model(x))
    with torch.no_grad():
        assert torch.equal(traced(x), model(x))


IN_TRAINING: dict[str, tuple[Any, Any]] = {
    "requires_grad": (lambda y: y.requires_grad, lambda run, x: torch.no_grad()(run)(x)),
    "grad_fn": (lambda y: y.grad_fn is not None, lambda run, x: torch.no_grad()(run)(x)),
    "is_leaf": (lambda y: y.is_leaf, lambda run, x: torch.no_grad()(run)(x)),
    "is_grad_enabled": (lambda y: torch.is_grad_enabled(), lambda run, x: torch.no_grad()(run)(x)),
    "dtype": (lambda y: y.dtype == torch.bfloat16, lambda run, x: run.bfloat16()(x.bfloat16())),
    "is_contiguous": (lambda y: y.is_contiguous(), lambda run, x: run(x.t().contiguous().t())),
    "is_autocast_enabled": (
        lambda y: torch.is_autocast_enabled("cpu"), lambda run, x: torch.autocast("cpu", torch.bfloat16)(run)(x)
    ),
}  # fmt: skip


@pytest.mark.parametrize("fact", IN_TRAINING)
def test_questions_in_training_alone_are_checked_there_alone(fact: str) -> None:
    question, otherwise = IN_TRAINING[fact]

    def forward(self: Any, x: Tensor) -> Tensor:
        y = x if fact == "is_contiguous" else self.f(x)
        y = y * 2 if self.training and question(y) else y
        return self.h(self.f(y) if fact == "is_contiguous" else y)  # type: ignore[no-any-return]

    model, x = net(forward, **parts()), torch.randn(8, 8)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, compensate=False)
    if fact not in ("requires_grad", "grad_fn", "is_leaf", "is_grad_enabled"):
        assert fxprune.verify(model, pruned, training=True) < 1e-9
    for made in (trace(model, x), pruned, pickle.loads(pickle.dumps(pruned)), trace(pruned, x)):
        if made.h.in_features == model.h.in_features:
            assert torch.equal(made.train()(x), model.train()(x))
        with pytest.raises(FxpruneError, match=rf"{fact}.* (is|does).*`Net`"):
            otherwise(copy.deepcopy(made).train(), x)
        otherwise(copy.deepcopy(made).eval(), x)


def test_checks_of_facts_are_compiled_and_exported() -> None:
    for forward in (clamped_in_half, by_layout, by_gradient):
        traced, x = trace(net(forward, **parts()).eval(), torch.randn(4, 8)), torch.randn(4, 8)
        assert checks_of(traced)
        torch.testing.assert_close(torch.compile(traced, backend="eager", fullgraph=True)(x), traced(x))
        torch.testing.assert_close(torch.export.export(traced, (x,)).module()(x), traced(x))


def test_whether_a_new_tensor_is_to_have_a_gradient_is_nothing_that_the_code_follows() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.a(x) * torch.ones(x.shape[0], 1, requires_grad=x.requires_grad)  # type: ignore[no-any-return]

    model = net(forward, a=nn.Linear(4, 2))
    traced = trace(model, torch.randn(3, 4))
    x = torch.randn(2, 4, requires_grad=True)
    gradient, expected = (torch.autograd.grad(f(x).sum(), x)[0] for f in (traced, model))
    assert torch.equal(gradient, expected)


def in_inference_mode(self: Any, x: Tensor) -> Tensor:
    y = self.f(x)
    return self.h(y.tanh() if torch.is_inference_mode_enabled() else y)  # type: ignore[no-any-return]


def in_own_inference_mode(self: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        scale = 2.0 if torch.is_inference_mode_enabled() else 1.0
    return self.h(self.f(x) * scale)  # type: ignore[no-any-return]


def test_the_inference_mode_is_checked_where_the_code_follows_it() -> None:
    x = torch.randn(4, 8)
    model = net(in_inference_mode, **parts()).eval()
    traced = trace(model, x)
    assert torch.equal(traced(x), model(x))
    torch.compile(traced, backend="eager", fullgraph=True)(x)
    with torch.inference_mode(), pytest.raises(FxpruneError, match=r"is_inference_mode_enabled\(\)` is True here"):
        traced(x)
    model = net(in_own_inference_mode, **parts()).eval()
    traced = trace(model, x)
    with torch.inference_mode():
        assert torch.equal(traced(x), model(x))


def of_strided(self: Any, x: Tensor) -> Tensor:
    return self.h(self.f(x if x.layout == torch.strided else x.to_dense().tanh()))  # type: ignore[no-any-return]


def test_a_layout_that_the_code_follows_is_checked() -> None:
    traced = trace(net(of_strided, **parts()).eval(), x := torch.randn(4, 8))
    with pytest.raises(FxpruneError, match=r"layout == torch.strided` is False here"):
        traced(x.to_sparse())


@pytest.mark.parametrize(
    "on_gpu",
    [lambda x: x.is_cuda, lambda x: not x.is_cpu, lambda x: x.device.type == "cuda", lambda x: "cuda" in str(x.device)],
)
def test_another_device_is_warned_of_where_the_code_follows_it(on_gpu: Any) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.h(self.f(x).tanh() if on_gpu(x) else self.f(x))  # type: ignore[no-any-return]

    model, x = net(forward, **parts()).eval(), torch.randn(4, 8)
    traced = trace(model, x)
    assert torch.equal(traced(x), model(x))
    (check,) = (node for node in traced.graph.nodes if node.target is check_device)
    assert check.args[1] == "cuda"
    with pytest.warns(FxpruneWarning, match=r"`x\.device` is meta here\. The code of `Net` does something else"):
        check_device(x.to("meta"), "meta", *check.args[2:])


def from_bytes(self: Any, x: Tensor) -> Tensor:
    if x.dtype == torch.uint8:
        x = x / 255
    return self.h(self.f(x.to(torch.float32)))  # type: ignore[no-any-return]


def from_whole(self: Any, x: Tensor) -> Tensor:
    x = x.flatten(1)
    return self.h(self.f(x if x.is_floating_point() else x.float() / 255))  # type: ignore[no-any-return]


@pytest.mark.parametrize("forward", [from_bytes, from_whole])
def test_inputs_of_another_kind_of_numbers_are_refused_where_the_code_asks(forward: Any) -> None:
    model, x = net(forward, **parts()).eval(), torch.randn(4, 8)
    whole = (x * 100).to(torch.uint8)
    for first, other in ((x, whole), (whole, x)):
        pruned = fxprune.prune(model, 0.5, example_inputs=first, compensate=False)
        assert fxprune.verify(model, pruned) < 1e-9
        for made in (trace(model, first), pruned, trace(pruned, first)):
            made(first)
            with pytest.raises(FxpruneError, match=r"`(x|flatten)\.dtype` is torch.*`Net` does something else"):
                made(other)


def test_masks_of_one_kind_are_not_taken_for_those_of_another() -> None:
    def forward(self: Any, x: Tensor, mask: Tensor) -> Tensor:
        weights = x.masked_fill(~mask, -1e4) if mask.dtype == torch.bool else x + mask
        return self.h(self.f(weights.softmax(-1)))  # type: ignore[no-any-return]

    model, x = net(forward, **parts()).eval(), torch.randn(4, 8)
    with pytest.raises(FxpruneError, match=r"`mask\.dtype` is torch\.bool here"):
        trace(model, (x, torch.zeros(4, 8)))(x, torch.ones(4, 8, dtype=torch.bool))
    with pytest.raises(FxpruneError, match=r"`mask\.dtype` is torch\.float32 here"):
        trace(model, (x, torch.ones(4, 8, dtype=torch.bool)))(x, torch.zeros(4, 8))


def test_what_weights_have_made_has_their_type_and_indices_are_of_two() -> None:
    def forward(self: Any, i: Tensor) -> Tensor:
        y = self.f(self.e(i.long() if i.dtype != torch.int64 else i))
        return self.h(y if y.is_floating_point() and y.dtype != torch.int64 else y.float())  # type: ignore[no-any-return]

    model, i = net(forward, **parts(), e=nn.Embedding(5, 8)).eval(), torch.randint(0, 5, (4, 3))
    traced = trace(model, i)
    assert len(checks_of(traced)) == 1
    assert torch.equal(traced(i.int()), model(i.int()))


def by_both(self: Any, x: Tensor) -> Tensor:
    y = self.f(x)
    return self.h(y.tanh() if y.requires_grad and torch.is_grad_enabled() and not self.training else y)  # type: ignore[no-any-return]


def by_what_cannot_be(self: Any, x: Tensor) -> Tensor:
    y = self.f(x)
    return self.h(y.tanh() if y.requires_grad and not torch.is_grad_enabled() else y)  # type: ignore[no-any-return]


def test_answers_on_gradients_agree_with_each_other() -> None:
    model, x = net(by_both, **parts()).eval(), torch.randn(4, 8)
    traced = trace(model, x)
    with torch.no_grad():
        assert torch.equal(traced(x), model(x))
    with pytest.raises(FxpruneError, match=r"requires_grad` is True here"):
        traced(x)
    model = net(by_what_cannot_be, **parts()).eval()
    traced = trace(model, x)
    assert not checks_of(traced)
    for training in (False, True):
        assert torch.equal(traced.train(training)(x), model.train(training)(x))
        with torch.no_grad():
            assert torch.equal(traced(x), model(x))

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import check_invariant, net, tokens
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fxprune
from fxprune import FxpruneError, trace
from fxprune.running.regions import exit_region, region

Forward = Callable[[Any, Tensor], Any]


def _without_autocast(self: Any, x: Tensor) -> Tensor:
    h = self.a(x).relu()
    with torch.autocast(x.device.type, enabled=False):
        h = h.float() @ h.float().transpose(1, 2) @ h.float()
    return self.b(h)  # type: ignore[no-any-return]


def _with_autocast(self: Any, x: Tensor) -> Tensor:
    h = self.a(x)
    with torch.amp.autocast("cpu", torch.bfloat16):
        h = h @ h.transpose(1, 2) @ h
    return self.b(h.to(x.dtype))  # type: ignore[no-any-return]


@torch.autocast("cpu", enabled=False)
def _decorated(self: Any, x: Tensor) -> Tensor:
    return self.b(self.a(x.float()).relu())  # type: ignore[no-any-return]


def _nested(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        h = self.a(x)
        with torch.autocast("cpu", enabled=False):
            h = h.float() * 2
            with torch.enable_grad():
                y = self.b(h)
        return self.b(h.relu()) + y  # type: ignore[no-any-return]


def _with_one_kernel(self: Any, x: Tensor) -> Tensor:
    h = self.a(x)
    with sdpa_kernel([SDPBackend.MATH]):
        h = F.scaled_dot_product_attention(h, h, h)
    with torch.backends.cudnn.flags(enabled=False):
        return self.b(h)  # type: ignore[no-any-return]


def _layer_norm_in_full_precision(self: Any, x: Tensor) -> Tensor:
    with torch.amp.autocast(device_type=x.device.type, enabled=False):
        return self.b(F.layer_norm(self.a(x.float()), (16,)))  # type: ignore[no-any-return]


@torch.inference_mode()
def _for_inference(self: Any, x: Tensor) -> Tensor:
    return self.b(self.a(x).relu())  # type: ignore[no-any-return]


def _kept_in_a_function(self: Any, x: Tensor) -> Tensor:
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    h = self.a(x)
    torch.set_grad_enabled(before)
    with torch.set_grad_enabled(self.training):
        return self.b(h) + self.b(h.relu())  # type: ignore[no-any-return]


FORWARDS = [
    _without_autocast, _with_autocast, _decorated, _nested, _with_one_kernel, _layer_norm_in_full_precision,
    _for_inference, _kept_in_a_function,
]  # fmt: skip


def _model(forward: Forward) -> nn.Module:
    torch.manual_seed(0)
    return net(forward, a=nn.Linear(4, 16), b=nn.Linear(16, 4)).eval()


def _contexts() -> list[Any]:
    return [
        nullcontext(), torch.autocast("cpu"), torch.autocast("cpu", torch.float16), torch.no_grad(),
        torch.inference_mode(), torch.autocast("cpu", enabled=False),
    ]  # fmt: skip


def _state() -> tuple[Any, ...]:
    return (
        torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(), torch.backends.cuda.flash_sdp_enabled(), torch.backends.cudnn.enabled,
    )  # fmt: skip


@pytest.mark.parametrize("forward", FORWARDS)
def test_contexts_in_forward_are_in_the_graph_whatever_context_it_runs_in(forward: Forward) -> None:
    model, x = _model(forward), tokens()
    traced = trace(model, x)
    for candidate in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        for mode in (False, True):
            for k in range(len(_contexts())):
                with _contexts()[k]:
                    before = _state()
                    for inputs in (x, tokens(7, batch=3)):
                        expected, got = model.train(mode)(inputs), candidate.train(mode)(inputs)
                        assert got.dtype == expected.dtype
                        assert got.requires_grad == expected.requires_grad
                        assert torch.equal(got, expected)
                    assert _state() == before


@pytest.mark.parametrize("forward", [_without_autocast, _decorated, _layer_norm_in_full_precision])
def test_models_with_contexts_are_pruned_right(forward: Forward) -> None:
    model = _model(lambda self, x: forward(self, x).to(x.dtype))
    casts = {name: getattr(torch.Tensor, name) for name in ("float",)}
    try:
        torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign, assignment]
        check_invariant(model, tokens(), channels=16)
    finally:
        torch.Tensor.float = casts["float"]  # type: ignore[method-assign]


@pytest.mark.parametrize("forward", FORWARDS)
def test_an_error_inside_a_context_leaves_it(forward: Forward) -> None:
    traced = trace(_model(forward), tokens())
    before = _state()
    for name in ("a", "b"):
        broken = copy.deepcopy(traced)
        setattr(broken, name, nn.Linear(3, 3))
        with pytest.raises(RuntimeError):
            broken(tokens())
        assert _state() == before


def test_the_code_of_a_graph_has_contexts_as_blocks_and_unused_ones_go() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            size = x.shape[0]
        with torch.autocast("cpu", torch.bfloat16):
            return self.a(x).view(size, -1)  # type: ignore[no-any-return]

    traced = trace(_model(forward), tokens())
    assert ":\n        a = self.a(x)" in traced.code
    assert traced.code.count("with ") == 1


def test_the_device_that_a_context_is_for_is_that_of_the_tensor_if_the_code_reads_it_there() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        kind = x.device.type if x.device.type != "mps" else "cpu"
        with torch.autocast(kind, enabled=False):
            h = self.a(x)
        with torch.autocast("cpu", enabled=False):
            return self.b(h)  # type: ignore[no-any-return]

    regions = [node for node in trace(_model(forward), tokens()).graph.nodes if node.target is region]
    assert [isinstance(node.args[1], torch.fx.Node) for node in regions] == [True, False]


def test_a_branch_on_autocast_holds_for_the_state_of_the_trace() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h * 2 if torch.is_autocast_enabled("cpu") else h)  # type: ignore[no-any-return]

    model = _model(forward)
    traced = trace(model, tokens())
    assert torch.equal(traced(tokens()), model(tokens()))
    with torch.autocast("cpu"):
        with pytest.raises(FxpruneError, match=r"is_autocast_enabled\('cpu'\)` is True here, and was False"):
            traced(tokens())
        traced = trace(model, tokens())
        assert torch.equal(traced(tokens()), model(tokens()))
    with pytest.raises(FxpruneError, match="is False here"):
        traced(tokens())


def _maybe_autocast(kind: str, dtype: Any = None, enabled: bool = True) -> Any:
    if torch.is_autocast_enabled(kind) or enabled:
        return torch.autocast(kind, dtype=dtype, enabled=enabled)
    return nullcontext()


def test_leaving_autocast_only_inside_it_is_leaving_it() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with _maybe_autocast(x.device.type, enabled=False):
            return self.b(self.a(x.float()))  # type: ignore[no-any-return]

    model = _model(forward)
    traced = trace(model, tokens())
    for k in range(len(_contexts())):
        with _contexts()[k]:
            assert torch.equal(traced(tokens()), model(tokens()))


def test_seeds_that_forward_sets_are_set_by_the_graph() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            noise = torch.rand(x.shape)
        return self.b(self.a(x + noise))  # type: ignore[no-any-return]

    model = _model(forward)
    traced = trace(model, tokens())
    state = torch.get_rng_state()
    for _ in range(2):
        assert torch.equal(traced(tokens()), model(tokens()))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_default_dtype_that_forward_sets_is_set_by_the_graph() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        torch.set_default_dtype(torch.float64)
        table = torch.linspace(0, 1, 4)
        torch.set_default_dtype(torch.float32)
        return self.b(self.a(x)) + table + torch.linspace(0, 1, 4)  # type: ignore[no-any-return]

    model = _model(forward)
    got = trace(model, tokens())(tokens())
    assert got.dtype == torch.float64
    assert torch.equal(got, model(tokens()))


def test_a_mode_of_gradients_that_forward_leaves_behind_stays() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        return self.b(self.a(x))  # type: ignore[no-any-return]

    traced = trace(_model(forward), tokens())
    assert torch.is_grad_enabled()
    try:
        assert not traced(tokens()).requires_grad
        assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("forward", [_without_autocast, _decorated, _nested, _layer_norm_in_full_precision])
def test_a_model_with_contexts_is_compiled_whole(forward: Forward, backend: str) -> None:
    torch._dynamo.reset()
    traced = trace(_model(forward), tokens())
    compiled = torch.compile(traced, backend=backend, fullgraph=True)
    for autocast in (False, True):
        for length in (5, 7):
            with torch.autocast("cpu", enabled=autocast):
                torch.testing.assert_close(compiled(tokens(length)), traced(tokens(length)))


@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
@pytest.mark.parametrize("forward", [_without_autocast, _layer_norm_in_full_precision])
def test_a_pruned_model_with_contexts_is_saved_loaded_and_exported(
    forward: Forward, ending: str, tmp_path: Path
) -> None:
    model = _model(forward)
    pruned = fxprune.prune(model, 0.7, example_inputs=tokens())
    fxprune.export(pruned, tmp_path / f"model{ending}", tokens())
    fxprune.save(pruned, tmp_path / "model.pt")
    loaded = fxprune.load(tmp_path / "model.pt", original=model)
    with torch.autocast("cpu"):
        assert torch.equal(loaded(tokens()), pruned(tokens()))
    assert fxprune.verify(model, pruned) < 1e-9


@pytest.mark.parametrize("method", ["relevance", "surgeon", "taylor"])
def test_models_with_contexts_are_scored_compensated_and_given_gates(method: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            h = self.norm(self.a(x)).relu()
        with torch.autocast("cpu", torch.bfloat16), torch.backends.cudnn.flags(enabled=False):
            h = self.b(h)
        return self.c(h.float().flatten(1))  # type: ignore[no-any-return]

    parts = {"a": nn.Conv2d(3, 8, 3), "norm": nn.BatchNorm2d(8), "b": nn.Conv2d(8, 8, 3), "c": nn.Linear(32, 4)}
    model = net(forward, **parts).eval()
    x = torch.randn(4, 3, 6, 6)
    before = _state()
    pruned = fxprune.prune(model, 0.6, example_inputs=x, data=x, method=method)
    assert _state() == before
    with torch.no_grad():
        assert pruned(x).dtype == torch.float32
    gated = fxprune.insert_gates(fxprune.analyze(trace(model, x)))
    assert sum(node.target is exit_region for node in gated.graph.nodes) == 3

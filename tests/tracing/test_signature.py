"""A traced or pruned model is called like its original: the same parameters, in the same order, with their defaults."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune import FxpruneError, trace


class Kind(Enum):
    """A default that is no literal."""

    PLAIN = 1


class Encoder(nn.Module):
    """A text encoder with optional inputs, which tokenizers give in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.h = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None, *, scale: float = 1.0,
        kind: Kind = Kind.PLAIN, other: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        y = self.f(ids) * scale
        if mask is not None:
            y = y * mask
        if types is not None:
            y = y + types * 2
        return self.h(y.relu())  # type: ignore[no-any-return]


class Special(nn.Module):
    """All kinds of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.h = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, /, y: Tensor | None = None, *more: Tensor, flag: bool = False, **named: Tensor) -> Any:
        total = self.f(x)
        for each in (*more, *named.values()):
            total = total + each
        return self.h(total.relu() if flag or y is None else total.relu() * y)


def inputs() -> dict[str, Tensor]:
    return {"ids": torch.randn(4, 8), "types": torch.rand(4, 1), "mask": torch.rand(4, 1)}


def kinds_and_defaults(model: nn.Module) -> list[tuple[Any, ...]]:
    parameters = inspect.signature(model.forward).parameters.values()
    return [(each.name, each.kind, each.default) for each in parameters]


def through_a_file(tmp_path: Path) -> Callable[[nn.Module, nn.Module], nn.Module]:
    def load(original: nn.Module, pruned: nn.Module) -> nn.Module:
        fxprune.save(pruned, tmp_path / "model.safetensors")
        return fxprune.load(tmp_path / "model.safetensors", original=original)

    return load


def gated(_: nn.Module, pruned: nn.Module) -> nn.Module:
    gates = fxprune.insert_gates(fxprune.analyze(trace(pruned, inputs())))
    return gates[0] if isinstance(gates, tuple) else gates


def test_a_pruned_model_and_what_is_made_of_it_have_the_signature_of_the_original(tmp_path: Path) -> None:
    model = Encoder().eval()
    pruned = fxprune.prune(model, 0.5, example_inputs=inputs(), compensate=False)
    given = inputs()
    expected = pruned(**given)
    for make in (
        lambda _, pruned: pruned,
        lambda _, pruned: copy.deepcopy(pruned),
        lambda _, pruned: pickle.loads(pickle.dumps(pruned)),
        lambda _, pruned: trace(pruned, inputs()),
        lambda original, pruned: fxprune.compensate(original, pruned, [inputs()]),
        fxprune.restore_class,
        through_a_file(tmp_path),
        gated,
    ):
        made: Any = make(model, pruned)
        assert kinds_and_defaults(made) == kinds_and_defaults(model)
        assert made(**given).shape == expected.shape
        with pytest.raises(TypeError):
            made(given["ids"], None, None, 1.0)


def test_every_kind_of_parameter_is_kept() -> None:
    model = Special().eval()
    x, y = torch.randn(4, 8), torch.rand(4, 1)
    for args in ((x,), (x, y), (x, y, y, y)):
        traced = trace(model, args)
        assert kinds_and_defaults(traced) == kinds_and_defaults(model)
        assert torch.equal(traced(*args), model(*args))
        with pytest.raises(FxpruneError, match=r"argument `(y|more)`"):
            traced(*args, *[y] * (5 - len(args)))
        with pytest.raises(FxpruneError, match=r"argument `named` is \['a'\] here, and was \[\]"):
            traced(*args, a=y)


def test_an_argument_that_the_example_skipped_does_not_move_the_others() -> None:
    model = Encoder().eval()
    given = inputs()
    del given["mask"]
    traced = trace(model, given)
    with pytest.raises(FxpruneError, match="argument `mask` is a tensor here, and was None"):
        traced(given["ids"], given["types"])
    assert torch.equal(traced(given["ids"], None, given["types"]), model(given["ids"], None, given["types"]))


@pytest.mark.parametrize("strict", [False, True])
def test_export_binds_keywords_by_their_names(strict: bool) -> None:
    model = Encoder().eval()
    pruned = fxprune.prune(model, 0.5, example_inputs=inputs(), compensate=False)
    given = inputs()
    program = torch.export.export(pruned, (), given, strict=strict)
    again = inputs()
    torch.testing.assert_close(program.module()(**again), pruned(**again))
    named = {"types": given["types"], "mask": given["mask"]}
    program = torch.export.export(pruned, (given["ids"],), named, strict=strict)
    torch.testing.assert_close(program.module()(given["ids"], **named), pruned(**given))


def test_the_order_of_keywords_does_not_matter_to_onnx_either(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pruned = fxprune.prune(Encoder().eval(), 0.5, example_inputs=inputs(), compensate=False)
    assert fxprune.export(pruned, tmp_path / "model.onnx") < 1e-5
    assert fxprune.export(pruned, tmp_path / "model.pt2") < 1e-5


def test_a_compiled_model_takes_keywords_in_any_order() -> None:
    pruned = fxprune.prune(Encoder().eval(), 0.5, example_inputs=inputs(), compensate=False)
    compiled, given = torch.compile(pruned, backend="eager", fullgraph=True), inputs()
    torch.testing.assert_close(compiled(**given), pruned(**given))
    torch.testing.assert_close(compiled(given["ids"], given["mask"], types=given["types"]), pruned(**given))


def test_export_refuses_what_it_would_bind_wrongly() -> None:
    model = Special().eval()
    x, y = torch.randn(4, 8), torch.rand(4, 1)
    traced = trace(nn.Sequential(model), x)
    assert list(inspect.signature(traced.forward).parameters) == ["input"]
    traced = trace(model, (x, y))
    with pytest.raises(FxpruneError, match="beside"):
        torch.export.export(traced, (x, y), {"flag": False})


def test_changed_placeholders_get_a_signature_of_their_own() -> None:
    traced = trace(Encoder().eval(), inputs())
    for node in list(traced.graph.nodes):
        if node.op == "placeholder" and not node.users:
            traced.graph.erase_node(node)
    traced.recompile()
    given = inputs()
    assert "kind" not in inspect.signature(traced.forward).parameters
    assert traced(given["ids"], given["mask"], given["types"]).shape == (4, 3)
    assert isinstance(traced, fx.GraphModule)

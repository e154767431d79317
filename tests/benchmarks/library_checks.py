"""What `libraries.py` checks at other inputs than those of the pruning: other sizes, training, compiled, exported.

Each check leaves its verdict in `result["elsewhere"]`: "same", "refused: ..." where the pruned model raises an
FxpruneError, "differs: ..." or "fails: ..."; what the original does not do itself is left out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import on_meta
import torch
from coverage import CHECKS as COVERAGE_CHECKS
from coverage import call, own_noise
from many import Result
from torch import Tensor, nn

import fxprune
from fxprune.errors import FxpruneError
from fxprune.running import trees
from fxprune.running.calls import call_arguments
from fxprune.running.double import outputs_in_double
from fxprune.tracing.notes import trace_notes
from fxprune.verification import TOLERANCE, largest_error

__all__ = ["CHECKS", "SAME", "most_flops"]

SAME = "same"
# More than rounding, whatever a model does with it in float32.
_SINGLE = 1e-3
# More than rounding, whatever a model does with it in float64.
_MOST_NOISE = 1e-4
# All plans of a model are counted where there are no more than these; they take seconds.
_MOST_PLANS = 1_000_000


def most_flops(graph: fxprune.ChannelGraph, target: int) -> int | None:
    """The most FLOPs, up to a target, of all plans; None for too many plans, or channels of a group that differ."""
    flops, whole = graph.flops, np.ones(graph.num_channels, dtype=bool)
    widths = [len(group) for group in graph.groups]
    if math.prod(widths) > _MOST_PLANS:
        return None
    saved = []
    for group in graph.groups:
        each = [flops.sizes(whole) - flops.sizes(whole & (np.arange(len(whole)) != k)) for k in group.channels]
        if any((other != each[0]).any() for other in each):
            return None
        saved.append(each[0])
    costs = [
        (flops.coefficients * sizes[:, flops.products].prod(axis=2)).sum(axis=1)
        for gone in np.array_split(np.indices(widths).reshape(len(widths), -1).T, math.prod(widths) // 5_000 + 1)
        for sizes in [flops.sizes(whole) - gone @ np.stack(saved)]
    ]
    return max((int(cost[cost <= target].max(initial=-1)) for cost in costs), default=None)


def _check_shape(spec: str, state: dict[str, Any], result: Result) -> None:
    """As in `coverage.py`, or those of the masked original, where fxprune says that they depend on values."""
    try:
        COVERAGE_CHECKS["shape"](spec, state, result)
    except AssertionError:
        said = any("may have another size for other values" in note for note in trace_notes(state["pruned"]).remarks)
        if not said or fxprune.verify(state["model"], state["pruned"]) > TOLERANCE:
            raise
        result["sized_by_values"] = True


def _check_predicted(spec: str, state: dict[str, Any], result: Result) -> None:
    """As in `coverage.py`, but for FLOPs that fxprune calls an estimate."""
    if result.get("sized_by_values"):
        return
    try:
        COVERAGE_CHECKS["predicted"](spec, state, result)
    except AssertionError:
        result["estimated"] = any("are an estimate" in note for note in trace_notes(state["pruned"]).remarks)
        if not result["estimated"]:
            raise


def _check_flops(spec: str, state: dict[str, Any], result: Result) -> None:
    """As in `coverage.py`, or no other plan has more within the budget; estimates are compared as such."""
    if result.get("sized_by_values"):
        plan, budget = fxprune.plan_of(state["pruned"]), result.get("budget", 0.5)
        result.update(flops_before=plan.flops_before, flops_after=plan.flops, ratio=plan.flops / plan.flops_before)
        assert budget - on_meta.SLACK <= result["ratio"] <= budget, f"estimated FLOPs ratio {result['ratio']:.5f}"
        return
    try:
        COVERAGE_CHECKS["flops"](spec, state, result)
    except AssertionError:
        before, after = result["flops_before"], result["flops_after"]
        result["no_closer"] = most_flops(state["graph"], math.floor(result.get("budget", 0.5) * before)) == after
        if not result["no_closer"]:
            raise


def _twice(inputs: Any) -> Any:
    """The inputs with each sample twice, the second one turned round."""
    return trees.map_tensors(lambda x: torch.cat([x, x.flip(-1) if x.dim() > 1 else x]) if x.dim() else x, inputs)


def _first(inputs: Any) -> Any:
    return trees.map_tensors(lambda x: x[:1] if x.dim() else x, inputs)


def _larger_images(x: Tensor) -> Tensor:
    if x.dim() not in (4, 5) or not x.is_floating_point() or min(x.shape[-2:]) < 16:
        return x
    # A multiple of 32 where the example is one; by half where that is one, too.
    grown = [size + size // 2 if size % 64 == 0 else size * 2 for size in x.shape[-2:]]
    return torch.randn(*x.shape[:-2], *grown)


def _longer(x: Tensor, dim: int) -> Tensor:
    return torch.cat([x, x.narrow(dim, 0, max(1, x.shape[dim] // 2))], dim)


def _longer_text(x: Tensor) -> Tensor:
    return _longer(x, 1) if x.dim() in (2, 3) and not x.is_floating_point() else x


def _longer_sound(x: Tensor) -> Tensor:
    return _longer(x, x.dim() - 1) if x.dim() in (2, 3) and x.is_floating_point() and x.shape[-1] >= 128 else x


def _longer_states(inputs: Any) -> Any:
    """Longer states, and their masks: of a shorter one, models take no more than that it masks nothing."""
    longer = trees.map_tensors(lambda x: _longer(x, 1) if x.dim() == 3 and x.is_floating_point() else x, inputs)
    lengths = {old.shape[1] for old, new in zip(*map(trees.tensors, (inputs, longer)), strict=True) if old is not new}
    for name, mask in longer.items() if isinstance(longer, dict) else ():
        if "mask" in name and isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] in lengths:
            longer[name] = _longer(mask, 1)
    return longer


def _padded(inputs: Any) -> Any:
    """The inputs with more padding, if they have a mask."""
    if not isinstance(inputs, dict) or not isinstance(inputs.get("attention_mask"), Tensor):
        return inputs
    padded = inputs["attention_mask"].flip(0).clone()
    padded[..., padded.shape[-1] - 1 :] = 0
    return {**inputs, "attention_mask": padded}


OTHERS: dict[str, Callable[[Any], Any]] = {
    "batch": _twice,
    "one sample": _first,
    "size": lambda inputs: trees.map_tensors(_larger_images, inputs),
    "length": lambda inputs: trees.map_tensors(_longer_text, inputs),
    "sound": lambda inputs: trees.map_tensors(_longer_sound, inputs),
    "states": _longer_states,
    "padding": _padded,
}


def _verified(state: dict[str, Any], inputs: Any, result: Result, *, training: bool = False) -> str:
    """The verdict of `verify`: rounding is no difference where it changes the masked original's outputs as much."""
    error = fxprune.verify(state["model"], state["pruned"], inputs, training=training)
    if TOLERANCE < error <= _MOST_NOISE and error <= (noise := own_noise(state, inputs, training=training)):
        result["noise"] = max(noise, result.get("noise", 0.0))
        return SAME
    return SAME if error <= TOLERANCE else f"differs: {error:.3g}"


def _say(result: Result, name: str, run: Callable[[], str]) -> None:
    """Keep the verdict of a check."""
    try:
        verdict = run()
    except Exception as error:
        refused = isinstance(error, FxpruneError) or "FxpruneError" in str(error)
        text = " ".join(str(error).split())[:300]
        verdict = f"refused: {text}" if refused else f"fails: {type(error).__name__}: {text}"
    result.setdefault("elsewhere", {})[name] = verdict


def _runs(model: nn.Module, inputs: Any) -> bool:
    try:
        with torch.no_grad():
            return all(bool(x.isfinite().any()) for x in trees.tensors(call(model, inputs)) if x.numel())
    except Exception:
        return False


def other_inputs(state: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Inputs of other sizes at which the original runs, by name."""
    same = _shapes(state["inputs"])
    for name, change in OTHERS.items():
        try:
            inputs = change(state["inputs"])
        except Exception:
            continue
        # Dropping samples changes nothing where there is one.
        changed = _shapes(inputs) != same or (name == "padding" and inputs is not state["inputs"])
        if changed and _runs(copy.deepcopy(state["model"]).eval(), inputs) and _runs_in_double(state["model"], inputs):
            yield name, inputs


def _runs_in_double(model: nn.Module, inputs: Any) -> bool:
    """Whether a model runs as `verify` runs it: LSTMs in float32 take inputs of a wrong width without a word."""
    try:
        outputs_in_double(copy.deepcopy(model), *call_arguments(inputs))
    except Exception as error:
        return "shapes cannot be multiplied" not in str(error)
    return True


def _shapes(inputs: Any) -> list[torch.Size]:
    return [x.shape for x in trees.tensors(inputs)]


def _check_sizes(spec: str, state: dict[str, Any], result: Result) -> None:
    for name, inputs in other_inputs(state):
        _say(result, name, lambda i=inputs: _verified(state, i, result))  # type: ignore[misc]


def _check_training(spec: str, state: dict[str, Any], result: Result) -> None:
    inputs = _twice(state["inputs"])
    if not _runs(copy.deepcopy(state["model"]).train(), inputs):
        return
    remarks = [note for note in trace_notes(state["pruned"]).remarks if "train" in note]
    result["training_remarks"] = remarks[:3]

    _say(result, "training", lambda: _verified(state, inputs, result, training=True))

    def step() -> str:
        net = copy.deepcopy(state["pruned"]).train()
        loss = torch.stack([x.float().square().mean() for x in trees.tensors(call(net, inputs)) if x.numel()]).sum()
        if loss.requires_grad:
            loss.backward()
        return SAME

    _say(result, "step", step)


def _by_name(outputs: Any) -> Any:
    """Outputs with the entries of dicts by their names: an exported model, the original too, gives the fields first."""
    if isinstance(outputs, dict):
        return [_by_name(outputs[name]) for name in sorted(outputs, key=str)]
    return [*map(_by_name, outputs)] if isinstance(outputs, (tuple, list)) else outputs


def _differs(state: dict[str, Any], net: Callable[..., Any], inputs: Any) -> str:
    args, kwargs = call_arguments(inputs)
    with torch.no_grad():
        torch.manual_seed(0)
        expected = trees.tensors(_by_name(call(state["pruned"].eval(), inputs)))
        torch.manual_seed(0)
        got = trees.tensors(_by_name(net(*copy.deepcopy(args), **copy.deepcopy(kwargs))))
    error = largest_error(expected, got)
    return SAME if error <= _SINGLE else f"differs: {error:.3g}"


def _check_compile(spec: str, state: dict[str, Any], result: Result) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(state["pruned"]).eval(), backend="eager")
    _say(result, "compile", lambda: _differs(state, compiled, state["inputs"]))
    for name, inputs in other_inputs(state):
        if result["elsewhere"].get(name) == SAME and name in ("size", "length", "batch"):
            _say(result, f"compile, {name}", lambda i=inputs: _differs(state, compiled, i))  # type: ignore[misc]
            break


def _check_export(spec: str, state: dict[str, Any], result: Result) -> None:
    args, kwargs = call_arguments(state["inputs"])

    def exported(model: nn.Module) -> Any:
        with torch.no_grad():
            return torch.export.export(copy.deepcopy(model).eval(), args, kwargs).module()

    def run() -> str:
        try:
            program = exported(state["pruned"])
        except Exception:
            try:
                exported(state["model"])
            except Exception as error:
                result["no_export"] = f"nor has the original one: {type(error).__name__}"
                return SAME
            raise
        return _differs(state, program, state["inputs"])

    _say(result, "export", run)


def _check_elsewhere(spec: str, state: dict[str, Any], result: Result) -> None:
    wrong = {name: verdict for name, verdict in result.get("elsewhere", {}).items() if verdict != SAME}
    assert not wrong, "; ".join(f"{name} {verdict}" for name, verdict in wrong.items())


CHECKS = {
    "shape": _check_shape,
    "flops": _check_flops,
    "predicted": _check_predicted,
    "sizes": _check_sizes,
    "training": _check_training,
    "compile": _check_compile,
    "export": _check_export,
    "elsewhere": _check_elsewhere,
}

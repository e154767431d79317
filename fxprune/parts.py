"""prune_parts(): models that cannot be traced as a whole, as detectors: their parts, to a budget of the whole."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import fx, nn

from fxprune.analysis import analyze
from fxprune.api import prune
from fxprune.data import Inputs
from fxprune.errors import FxpruneError, UnreachableBudgetError
from fxprune.flops import count_flops
from fxprune.planning.budgets import Request
from fxprune.planning.make import lowest_flops
from fxprune.planning.plan import Plan
from fxprune.progress import Progress
from fxprune.provenance import plan_of
from fxprune.restoring import restore_class
from fxprune.running import trees
from fxprune.running.calls import Call, call_arguments, given_call
from fxprune.running.copies import copy_module, meta_like
from fxprune.running.devices import on_device_of
from fxprune.scoring.criteria import Method
from fxprune.tracing.attempts import CONDITIONS, SIZED_BY_VALUES
from fxprune.tracing.notes import trace_notes
from fxprune.tracing.tracer import trace_knowing

__all__ = ["PrunedParts", "prune_parts"]

# How often the parts are pruned again where the FLOPs of the rest depend on values. Not tuned.
_MOST_ROUNDS = 4


@dataclass(frozen=True, eq=False)
class PrunedParts:
    """What `prune_parts` returns.

    Attributes:
        model: of the class of the original, with smaller parts in it.
        plans: by the path of the part, what was kept of it.
        flops_before: FLOPs of the whole original, for the example inputs.
        flops: FLOPs of the whole result, counted in the same way.
        remarks: what of the parts is not as before.
    """

    model: nn.Module
    plans: Mapping[str, Plan]
    flops_before: int
    flops: int
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        share = self.flops / self.flops_before
        said = f"{type(self.model).__name__}: {share:.4f} of the FLOPs of the whole, pruned in {', '.join(self.plans)}"
        return "\n".join([said, *self.remarks])


@dataclass(frozen=True, eq=False)
class _Part:
    """A part; and of the calls of it that the whole makes, the FLOPs of all, of the first, and the fewest of that."""

    path: str
    module: nn.Module
    example: Inputs
    flops: int
    first: int
    lowest: int

    def target(self, share: float) -> int:
        """The budget for the first call."""
        return max(int(share * self.first), self.lowest)

    def fraction(self, share: float) -> float:
        """The same as a fraction of what the first call costs."""
        # Half a unit above the target, so that rounding does not take one off.
        return min((self.target(share) + 0.5) / self.first, 1.0)


def prune_parts(
    model: nn.Module,
    flops: float | None = None,
    *,
    example_inputs: Inputs,
    parts: Iterable[str] | None = None,
    data: Iterable[Any] | None = None,
    method: Method | None = None,
    compensate: bool = True,
    samples: int = 128,
    round_to: int | Literal["auto"] = "auto",
    seed: int = 0,
    progress: bool | Progress = True,
) -> PrunedParts:
    """Make a model smaller that cannot be traced as a whole, so that the whole costs at most `flops`.

    What a detector does with boxes depends on their values, and no graph has it. Its backbone and heads can be traced.
    Each such part is traced with the inputs that it gets when the whole model runs on the example, is pruned by
    `fxprune.prune`, and takes its place in a copy of the model. All parts keep the same fraction of their FLOPs, or as
    little as they can. Inputs and outputs of a part keep their channels.

    Args:
        model: not changed.
        flops: the budget of the whole; up to 1 a fraction of the model's FLOPs, above 1 a number of FLOPs, as
            `fxprune.count_flops` counts them on the example. Default: 0.5.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments, ``([image],)`` for a detector of
            torchvision.
        parts: paths of the modules to prune. Default: the largest that can be traced and have channels to prune.
        data: batches to score and compensate on: what the model takes as its only argument, a tuple of arguments or a
            dict of keyword arguments, or a pair of one of these and labels, which are ignored.
        method: as for `fxprune.prune`.
        compensate: as for `fxprune.prune`.
        samples: as for `fxprune.prune`; of each part. Of calls of several shapes, those like the first are used.
        round_to: as for `fxprune.prune`.
        seed: of everything random.
        progress: as for `fxprune.prune`.

    Returns:
        The smaller model and what was pruned. A part is a GraphModule, or of its own class if that has methods that the
        rest of the model may call. ``fxprune.verify(model.backbone, small.backbone)`` verifies a part, as long as it is
        not trained.

    Raises:
        UnreachableBudgetError: the parts cannot become so small that the whole meets the budget.
        FxpruneError: no part can be traced, or one of `parts` is not called, shares weights with the rest, or cannot be
            traced; or as `fxprune.prune`.

    Examples:
        >>> class Detector(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 2, 1))
        ...     def forward(self, x):
        ...         y = self.net(x).flatten()
        ...         return y[y > 0]
        >>> found = prune_parts(Detector(), 0.5, example_inputs=torch.zeros(1, 3, 8, 8))
        >>> print(found)
        Detector: 0.5000 of the FLOPs of the whole, pruned in net
    """
    flops = 0.5 if flops is None else flops
    request = Request(flops, round_to=round_to)
    call = given_call(model, example_inputs)
    paths = _find(model, call) if parts is None else list(parts)
    found = _parts(model, paths, call, request)
    before = count_flops(model, example_inputs)
    target = int(flops * before if flops <= 1 else flops)
    batches = {} if data is None else _batches(model, paths, data)
    rest = before - sum(part.flops for part in found)
    best: PrunedParts | None = None
    for _ in range(_MOST_ROUNDS):
        share = _share(found, rest, target, before)
        graphs = {
            part.path: prune(
                part.module,
                part.fraction(share),
                example_inputs=part.example,
                data=batches.get(part.path),
                method=method,
                compensate=compensate,
                samples=samples,
                round_to=round_to,
                seed=seed,
                progress=progress,
            )
            for part in found
            if part.target(share) < part.first
        }
        result = _put_together(model, graphs, example_inputs, before)
        if result.flops <= target and (best is None or result.flops > best.flops):
            best = result
        kept = {path: plan.flops / plan.flops_before for path, plan in result.plans.items()}
        predicted = rest + sum(int(kept.get(part.path, 1.0) * part.flops) for part in found)
        if result.flops <= target and result.flops >= predicted - len(found):
            break
        # The rest costs more or less than before: as many boxes as there are values above a threshold.
        rest += result.flops - predicted
    if best is None:
        raise FxpruneError(
            f"{type(model).__name__} costs {result.flops:,} FLOPs after pruning, more than the budget of {target:,}: "
            "what its other parts cost depends on values. Give a lower budget, or weights that are trained"
        )
    return best


# --- which parts ------------------------------------------------------------------------------------------------------

_Calls: TypeAlias = dict[str, list[Call]]


def _calls(
    model: nn.Module, paths: Iterable[str], calls: Iterable[Call], keep: Callable[[torch.Tensor], Any]
) -> _Calls:
    """The calls of modules that the model makes in eval, with what `keep` makes of each tensor."""
    twin, found = copy_module(model).eval(), _Calls()

    def note(path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        found.setdefault(path, []).append(trees.map_tensors(keep, (tuple(args), dict(kwargs))))

    for path in paths:
        twin.get_submodule(path).register_forward_pre_hook(partial(note, path), with_kwargs=True)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for args, kwargs in calls:
            twin(*args, **kwargs)
    return found


def _find(model: nn.Module, call: Call) -> list[str]:
    """The largest modules inside the model that can be traced and have channels to prune."""
    named = dict(model.named_modules())
    calls = _calls(model, [path for path in named if path], [call], meta_like)
    refusals: list[str] = []

    def search(path: str) -> Iterator[str]:
        if path in calls and any(named[path].children()) and not _shared(model, path):
            try:
                traced = trace_knowing(named[path], _as_example(named[path], calls[path][0]), {}, copy=False)
                by_values = any(note.startswith((SIZED_BY_VALUES, CONDITIONS)) for note in trace_notes(traced).remarks)
                graph = analyze(traced)
                if graph.groups and graph.flops.total and not by_values:
                    yield path
                    return
            except FxpruneError as error:
                refusals.append(str(error))
        for name, _ in named[path].named_children():
            below = f"{path}.{name}".removeprefix(".")
            # A module with several names is found under the first.
            if below in named and next(named[below].parameters(), None) is not None:
                yield from search(below)

    found = list(search(""))
    if not found:
        raise FxpruneError(f"no part of {type(model).__name__} can be pruned. {' '.join(refusals[:1])}".rstrip())
    return found


def _shared(model: nn.Module, path: str) -> bool:
    """Whether weights of a part are also elsewhere in the model."""
    inside = {id(parameter) for parameter in model.get_submodule(path).parameters()}
    named = model.named_parameters(remove_duplicate=False)
    return any(id(parameter) in inside and not name.startswith(f"{path}.") for name, parameter in named)


def _as_example(module: nn.Module, call: Call) -> Inputs:
    """A call as `example_inputs` takes it: a tuple of arguments or a dict of keyword arguments."""
    args, kwargs = call
    return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments) if kwargs else args


def _parts(model: nn.Module, paths: Sequence[str], call: Call, request: Request) -> list[_Part]:
    named = dict(model.named_modules())
    for path in paths:
        if path not in named or not path:
            raise FxpruneError(f"parts has {path!r}, which is no module inside {type(model).__name__}")
        if any(other != path and f"{path}.".startswith(f"{other}.") for other in paths):
            raise FxpruneError(f"parts has {path!r} and a module around it: give one of the two")
        if _shared(model, path):
            raise FxpruneError(f"{path} shares weights with other parts of {type(model).__name__}: it must stay whole")
    calls = _calls(model, paths, [call], lambda tensor: tensor.detach().clone())
    found = []
    for path in paths:
        if path not in calls:
            raise FxpruneError(f"{path} is not called when {type(model).__name__} runs on the example in eval")
        examples = [_as_example(named[path], each) for each in calls[path]]
        counts = [count_flops(named[path], example) for example in examples]
        lowest = lowest_flops(analyze(trace_knowing(named[path], examples[0], {}, copy=False)), request)
        found.append(_Part(path, named[path], examples[0], sum(counts), counts[0], lowest))
    return found


def _share(parts: Sequence[_Part], rest: int, target: int, whole: int) -> float:
    """The largest fraction of their FLOPs that the parts can keep."""

    def cost(share: float) -> float:
        return rest + sum(part.flops * part.target(share) / max(part.first, 1) for part in parts)

    if cost(0.0) > target:
        inside = sum(part.flops for part in parts)
        raise UnreachableBudgetError(
            f"a budget of {target:,} FLOPs ({target / whole:.1%} of the whole) cannot be reached: "
            f"{', '.join(part.path for part in parts)} have {inside / whole:.1%} of the FLOPs, and with one channel "
            f"left in each group the whole has {cost(0.0) / whole:.1%}"
        )
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= target else (low, middle)
    return low


# --- the smaller model ------------------------------------------------------------------------------------------------


def _batches(model: nn.Module, paths: Sequence[str], data: Iterable[Any]) -> dict[str, list[Any]]:
    """By path, the batches that each part gets when the whole model runs on the data."""
    inputs = [item[0] if isinstance(item, tuple) and len(item) == 2 else item for item in data]
    calls = [on_device_of(model, call_arguments((item,) if isinstance(item, list) else item)) for item in inputs]
    found = _calls(model, paths, calls, lambda tensor: tensor.detach().clone())
    return {
        path: [(_as_example(model.get_submodule(path), call), None) for call in each if _form(call) == _form(each[0])]
        for path, each in found.items()
    }


def _form(call: Call) -> object:
    """What calls have in common whose samples can be joined: all but the number of these, and values of tensors."""
    return trees.map_tensors(lambda tensor: (str(tensor.dtype), tuple(tensor.shape[1:])), call)


def _put_together(
    model: nn.Module, graphs: Mapping[str, fx.GraphModule], example_inputs: Inputs, before: int
) -> PrunedParts:
    """A copy of the model with the pruned parts."""
    whole = copy_module(model)
    remarks = []
    for path, graph in graphs.items():
        part: nn.Module = graph
        original = model.get_submodule(path)
        if methods := _methods(original):
            try:
                part = restore_class(original, graph)
                # What verify and plan_of read.
                vars(part).setdefault("meta", dict(graph.meta))
            except FxpruneError as error:
                remarks.append(f"{path} is a graph without the methods {', '.join(methods)}: {error}")
        above, _, name = path.rpartition(".")
        setattr(whole.get_submodule(above), name, part.train(original.training))
    plans = {path: plan_of(graph) for path, graph in graphs.items()}
    return PrunedParts(whole, plans, before, count_flops(whole, example_inputs), tuple(remarks))


def _methods(module: nn.Module) -> list[str]:
    """The methods that the class of a module has, besides those of torch and `forward`."""
    kinds = [kind for kind in type(module).__mro__ if kind.__module__.partition(".")[0] != "torch"]
    names = {name for kind in kinds for name, value in vars(kind).items() if inspect.isfunction(value)}
    return sorted(name for name in names - {"forward"} if not name.startswith("_"))

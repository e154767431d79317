"""The pruned network as an object of the model's own class, for code that wants its methods and attributes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.channels import Block, ChannelGraph
from fxprune.errors import FxpruneError, called_as
from fxprune.ops import name_of_op
from fxprune.planning.plan import Plan, plan_keeping
from fxprune.provenance import check_order, plan_of
from fxprune.rewriting import alive_channels, original_graph, rewrite
from fxprune.running import trees
from fxprune.running.copies import copy_module, named_tensors
from fxprune.running.devices import check_values
from fxprune.running.double import outputs_in_double
from fxprune.tracing.constants import is_constant, put
from fxprune.tracing.notes import call_of, trace_notes
from fxprune.tracing.user_code import place_of
from fxprune.verification import TOLERANCE, largest_error

__all__ = ["restore_class"]

_CALL = "restore_class(original, pruned, example_inputs=None)"
_ADVICE = (
    "its forward assumes widths that pruning has changed; let it read them from its tensors (x.shape[1]), prune with "
    "ignore= for the layers that make them, or use the pruned graph, which needs neither"
)


@called_as(_CALL)
def restore_class(original: nn.Module, pruned: nn.Module, example_inputs: Any = None) -> nn.Module:
    """A copy of a model with the weights of what it was pruned to: the same class, methods, attributes and hooks.

    What `fxprune.prune` returns is a graph. Code that asks a model for more than its outputs (a loss as a method, a
    training script that looks for `model.head`) needs the model's class. A copy of the model gets the pruned parameters
    and buffers, and its layers the numbers that say how wide they are; modules that are removed blocks pass their input
    on, or give zeros, or nothing to a concatenation. A block that is no module stays, as narrow as it can be, with
    zeros at its end. Then its outputs are compared with those of the pruned graph: they differ where `forward` computes
    with widths that it does not read from its tensors.

    Args:
        original: the model before pruning; not changed.
        pruned: what `fxprune.prune` or `fxprune.rewrite` made of it, trained since or not; not changed.
        example_inputs: what both are compared on; default: what `pruned` was traced with.

    Returns:
        The copy, in the modes (training or not) of the original's modules.

    Raises:
        FxpruneError: `pruned` has no plan, the copy does not run, or its outputs differ.
    """
    check_order(_CALL, original, pruned)
    check_values("restore_class", pruned)
    unknown = plan_of(pruned).kept.keys() - named_tensors(original).keys()
    unknown = {name for name in unknown if not is_constant(name)}
    name = type(original).__name__
    if unknown:
        raise FxpruneError(f"{name} has no {min(unknown)}, which was pruned: give the model that was pruned")
    args, kwargs = call_of(pruned, example_inputs)
    try:
        expected = outputs_in_double(copy_module(pruned), args, kwargs)
    except Exception as error:
        raise FxpruneError(f"the pruned graph does not run on these inputs in float64: {error}") from error
    refusals: list[FxpruneError] = []
    for own in _attempts(original, pruned):
        try:
            difference = largest_error(expected, outputs_in_double(copy_module(own), args, kwargs))
        except Exception as error:
            place, line = place_of(error)
            refusals.append(
                FxpruneError(f"{name} does not run with the pruned weights ({place}: `{line}`: {error}): {_ADVICE}")
            )
            refusals[-1].__cause__ = error
            continue
        if difference <= TOLERANCE:
            return own
        refusals.append(
            FxpruneError(f"{name} with the pruned weights differs from the pruned graph by {difference:.1e}: {_ADVICE}")
        )
    raise refusals[0]


def _attempts(original: nn.Module, pruned: nn.Module) -> Iterator[nn.Module]:
    """Copies of a model with pruned weights, the smallest first.

    Forward may need what a block gives, where that is not added or concatenated at once: then blocks that are
    concatenated stay. And it may ask more of a block that stays than a width of 1.
    """
    plan = plan_of(pruned)
    if not plan.removed:
        own = copy_module(original)
        _take_over(own, pruned)
        yield own
        return
    graph, tried = original_graph(original, pruned), list[tuple[list[Block], bool]]()
    for joined, narrow in ((True, True), (False, True), (False, False)):
        own = copy_module(original)
        left = _leave_out_blocks(own, graph, plan, joined)
        way = left, narrow or not left
        if way not in tried:
            tried.append(way)
            _take_over(own, _with_blocks(graph, pruned, left, narrow) if left else pruned)
            yield own


def _with_blocks(graph: ChannelGraph, pruned: nn.Module, blocks: Collection[Block], narrow: bool) -> nn.Module:
    """A pruned model to which some of its blocks have come back, with zeros at their ends or wherever they are read.

    Args:
        graph: of the original.
        pruned: stays as it is.
        blocks: that come back.
        narrow: whether their own groups have one channel each.
    """
    plan = plan_of(pruned)
    try:
        alive = alive_channels(graph, plan)
        gone = {block for block in graph.blocks if not alive[block.channel]}.difference(blocks)
        for block in blocks:
            alive[block.channel] = True
            for group in graph.groups:
                own = all(dimension.parameter in block.tensors for dimension in group.dimensions)
                if own or np.isin(group.channels, block.channels).any():
                    alive[group.channels] |= not narrow
                    alive[group.channels[1:]] &= not own or not narrow
                    alive[group.channels[:1]] = True
        wider_plan = plan_keeping(graph, alive & graph.all_but(gone))
        wider = rewrite(graph, wider_plan)
    except FxpruneError:
        # It was pruned in several stages, or such a plan empties a tensor.
        return pruned
    of_old, tensors = named_tensors(graph.module), named_tensors(pruned)
    ends = {name for block in blocks if block.stays for name in block.ends}
    with torch.no_grad():
        for name, tensor in named_tensors(wider).items():
            if name in tensors:
                # What the plan removes is zero: then outputs are the same, by the invariant.
                tensor.copy_(wider_plan.cut(name, plan.padded(name, tensors[name], tuple(of_old[name].shape))))
            elif name in ends:
                tensor.zero_()
    return wider


class _LeftOut(nn.Module):
    """In place of a module whose output was added to something, and is left out: returns zeros like its input."""

    def forward(self, x: Tensor, *arguments: object, **options: object) -> Tensor:
        """Zeros of the shape of the first argument."""
        return torch.zeros_like(x)


class _PassesOn(nn.Identity):
    """In place of a module that is left out: returns its first argument."""

    def forward(self, input: Any, *arguments: object, **options: object) -> Any:  # noqa: A002
        """The first argument."""
        return input


class _Nothing(nn.Module):
    """In place of a module whose output was concatenated to something, and is left out: an empty tensor."""

    def forward(self, *arguments: object, **options: object) -> Tensor:
        """A tensor of shape (0,), which `torch.cat` skips whatever the shapes of the others are."""
        return next(iter(trees.tensors((arguments, options)))).new_empty(0)


def _leave_out_blocks(own: nn.Module, graph: ChannelGraph, plan: Plan, joined: bool) -> list[Block]:
    """Put modules that do nothing in place of those that are blocks; the removed blocks that are left.

    Of a module that is a residual connection as a whole only its input is left. A module that is the branch gives
    zeros. To a concatenation, modules at the end of a block give nothing, and those before pass their input on, if
    `joined`.
    """
    nodes = {node.name: node for node in graph.module.graph.nodes}
    modules = dict(graph.module.named_modules())
    ends = {block.ends for block in plan.removed.values()}
    gone = [block for block in graph.blocks if block.ends in ends]
    dead = {name for block in gone for name in (*block.nodes, *(block.readers if block.stays else ()))}
    made: dict[str, nn.Module] = {}
    # Not those that only contain others, as a ModuleList does.
    callable_paths = {path for path, each in own.named_modules() if type(each).forward is not nn.Module.forward}
    left: list[Block] = []
    for block in gone:
        if not block.stays:
            around = _around(block, graph, dead, callable_paths) if joined else {}
            made |= around
            left += [] if around else [block]
            continue
        total, stays, value = nodes[block.readers[0]], nodes[block.stays], nodes[block.value]
        whole, branch = str(total.meta.get("module") or ""), block.name.partition("#")[0]
        if _is_dead(whole, graph, dead) and _gives(total, stays, whole, modules):
            made[whole] = _PassesOn()
        elif _is_dead(branch, graph, dead) and not _is_within(total, branch) and _keeps_shape(branch, value, graph):
            made[branch] = _LeftOut()
        left.append(block)
    for path, module in made.items():
        if path in callable_paths:
            # The model may read what the module says of itself.
            of_old = {name: x for name, x in vars(own.get_submodule(path)).items() if not name.startswith("_")}
            vars(module).update(of_old)
            own.set_submodule(path, module)
    present = named_tensors(own).keys()
    return [block for block in left if not present.isdisjoint(block.tensors)]


def _around(
    block: Block, graph: ChannelGraph, dead: Collection[str], callable_paths: Collection[str]
) -> dict[str, nn.Module]:
    """What takes the place of the outermost modules that are in a block whose value is concatenated."""
    readers = [node for node in graph.module.graph.nodes if node.name in block.readers]
    made: dict[str, nn.Module] = {}
    for name in block.tensors:
        parts = name.split(".")[:-1]
        for path in (".".join(parts[: k + 1]) for k in range(len(parts))):
            apart = path in callable_paths and not any(_is_within(node, path) for node in readers)
            if apart and _is_dead(path, graph, dead):
                at_end = name in block.ends or isinstance(made.get(path), _Nothing)
                made[path] = _Nothing() if at_end else _PassesOn()
                break
    return made


def _is_dead(path: str, graph: ChannelGraph, dead: Collection[str]) -> bool:
    """Whether all that costs FLOPs in a module has gone."""
    costly = [node.name for node in graph.module.graph.nodes if node.name in graph.costs and _is_within(node, path)]
    return bool(path and costly) and all(name in dead for name in costly)


def _gives(total: fx.Node, stays: fx.Node, path: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a module without its branch gives its input; a ReLU at its end leaves what a ReLU gave as it is."""
    if _is_within(stays, path):
        return False
    after = [user for user in total.users if _is_within(user, path)]
    last = not any(_is_within(each, path) for user in after for each in user.users)
    relus = all(_name(user, modules) == "relu" for user in after)
    return not after or (last and relus and _is_positive(stays, modules))


def _is_positive(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a value comes from a ReLU, perhaps by way of pooling."""
    name = _name(node, modules)
    return name == "relu" or ("pool" in name and _is_positive(node.all_input_nodes[0], modules))


def _name(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """The name of the op that a node calls, or of the class of its module, in lower case."""
    return type(modules[str(node.target)]).__name__.lower() if node.op == "call_module" else name_of_op(node.target)


def _keeps_shape(path: str, value: fx.Node, graph: ChannelGraph) -> bool:
    """Whether the value of a branch has the shape of what its module is given."""
    first = next(node for node in graph.module.graph.nodes if _is_within(node, path) and node.all_input_nodes)
    given = first.all_input_nodes[0].meta["value"]
    return isinstance(given, Tensor) and given.shape == value.meta["value"].shape


def _is_within(node: fx.Node, path: str) -> bool:
    """Whether a node is of a module."""
    places = (str(node.meta.get("module") or ""), str(node.target) if node.op == "call_module" else "")
    return any(place == path or place.startswith(f"{path}.") for place in places)


def _take_over(own: nn.Module, pruned: nn.Module) -> None:
    """Give a model the pruned weights, and its layers the numbers that say how wide they are."""
    tensors = named_tensors(pruned)
    layers = dict(pruned.named_modules(remove_duplicate=False))
    copies: dict[int, Tensor] = {}
    for path, module in own.named_modules(remove_duplicate=False):
        for table in (module._parameters, module._buffers):
            for name in table:
                tensor = tensors.get(f"{path}.{name}".removeprefix("."))
                if tensor is not None:
                    table[name] = copies.setdefault(id(tensor), _copy(tensor))
        if type(layers.get(path)) is type(module):
            widths = vars(layers[path])
            for name, value in vars(module).items():
                if type(value) in (int, tuple) and name in widths:
                    setattr(module, name, widths[name])
    for name, place in trace_notes(pruned).constant_places.items():
        if name in tensors:
            put(own, place, _copy(tensors[name]))


def _copy(tensor: Tensor) -> Tensor:
    data = tensor.detach().clone()
    return nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data

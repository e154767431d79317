"""Recording a forward pass as an fx graph: every torch call is run on the meta device and becomes a node.

The recorder is a `TorchFunctionMode`, so that models see *real* tensors (on the meta device) and real ints:
`isinstance`, `len`, `if x.ndim == 4`, factory functions and `torch.Size` all work as ever. What has to stay symbolic
is carried on the side, see `nodes`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from fxprune.ops import Trait, name_of_op, names_with, traits
from fxprune.running import trees
from fxprune.running.copies import META
from fxprune.running.eager import run_forward, runs_modules
from fxprune.tracing.aten import as_function
from fxprune.tracing.library_modules import has_forward_hooks
from fxprune.tracing.meta_results import call_key, leaf_key, recall, remember
from fxprune.tracing.meta_runs import META_RUNS
from fxprune.tracing.node_targets import is_reflected, node_target
from fxprune.tracing.nodes import INPUTS, NOTHING, PARAMETERS
from fxprune.tracing.reading import DataDependentError, Reader
from fxprune.tracing.traced_module import ApplyFunction, ByMode, DivideBySpectralNorm

__all__ = ["Recorder"]


# What they give is laid out by the values of lengths; it is that of the example.
_PACKING = frozenset({torch._VF._pack_padded_sequence, torch._VF._pad_packed_sequence})


class Recorder(TorchFunctionMode, Reader):
    """Records what `module` (on the meta device) does under `recording(recorder)` into `graph`.

    `special_calls` gives what is done in place of recording a call.
    """

    def __init__(
        self,
        module: nn.Module,
        is_leaf: Callable[[nn.Module, str], bool],
        real: dict[int, Tensor],
        leaf_clone: Callable[[str], nn.Module],
        device: torch.device,
        special_calls: Mapping[Any, Callable[..., Any]],
        values: Mapping[str, Any],
    ) -> None:
        TorchFunctionMode.__init__(self)
        Reader.__init__(self, module, real, leaf_clone, values)
        self.paths = {id(child): path for path, child in module.named_modules()}
        self.original_paths = frozenset(path for path, _ in module.named_modules(remove_duplicate=False))
        self.is_leaf = is_leaf
        self.device = device
        self.special_calls = special_calls
        # Attributes that forward has changed, by the path of the module and the name.
        self.changed_numbers: dict[tuple[str, str], Any] = {}
        self.training_readers: set[str] = set()
        self.failed_in: str | None = None
        # How many functions are being run as what they compute.
        self.opened = 0
        self._calls: dict[str, int] = {}
        self._grad_region: tuple[fx.Node, fx.Node, int] | None = None

    # -- calls --

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        special = self.special_calls.get(func)
        if special is not None:
            return special(self, func, *args, **(kwargs or {}))
        if self.running_leaf or not self.active:
            return func(*args, **(kwargs or {}))
        function = as_function(func)
        if function is not None:
            with self:
                return function(*args, **(kwargs or {}))
        return self.call(func, args, kwargs or {})

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Records the call of a torch function or tensor method."""
        try:
            return self._call(func, args, kwargs)
        except RuntimeError as error:
            if "cannot be called on meta tensors" not in str(error):
                raise
            # Whole numbers in tensors, among numbers: the paddings of `pad`, the sizes of `reshape`, bounds of slices.
            args, kwargs = self._with_numbers(args), self._with_numbers(kwargs)
            return self._call(func, args, kwargs)

    def _with_numbers(self, arg: Any, nested: bool = False) -> Any:
        """The tensors of one whole number that are in tuples, lists and slices, as numbers of the graph."""
        if isinstance(arg, dict):
            return {name: self._with_numbers(value, nested) for name, value in arg.items()}
        if type(arg) in (tuple, list):
            return type(arg)(self._with_numbers(item, True) for item in arg)
        if type(arg) is slice:
            return slice(*(self._with_numbers(bound, True) for bound in (arg.start, arg.stop, arg.step)))
        if nested and isinstance(arg, Tensor) and not arg.dim() and not (arg.is_floating_point() or arg.is_complex()):
            return self.count(self.node_of(arg))
        return arg

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        op, target, args, kwargs = node_target(func, args, kwargs)
        self.takes_pieces = name_of_op(target) in names_with(Trait.JOIN)
        symbolic, values, origin = self.lower_all(args)
        self.takes_pieces = False
        names = list(kwargs)
        symbolic_kwargs, kwarg_values, kwarg_origin = self.lower_all(kwargs.values())
        value_kwargs = dict(zip(names, kwarg_values, strict=True))
        if value_kwargs.get("device") is not None or func in _constructors():
            value_kwargs["device"] = META
        if func is Tensor.to and len(values) > 1 and isinstance(values[1], str):
            values[1] = META
        run = target if is_reflected(func, target) else META_RUNS.get(func, func)
        return self.record(
            op, target, symbolic, dict(zip(names, symbolic_kwargs, strict=True)), max(origin, kwarg_origin),
            lambda: run(*values, **value_kwargs), (*values, *kwarg_values),
            call_key((func, tuple(names), *values, *value_kwargs.values())),
        )  # fmt: skip

    def record(
        self, op: str, target: Any, args: Any, kwargs: Any, origin: int, run: Callable[[], Any], inputs: Any,
        key: Any = None,
    ) -> Any:  # fmt: skip
        """Makes a node whose value is `run()`, or that of an earlier call with the same key."""
        tensors = trees.tensors(inputs)
        recalled = recall(key)
        if recalled is not None:
            value = recalled.value if recalled.same_as is None else tensors[recalled.same_as]
            node = self.create_node(op, target, args, kwargs, value, origin)
            self._note_mutation(node, [tensors[position] for position in recalled.written])
            self._note_random(node)
            return self.adopt(value, node)
        versions = [tensor._version for tensor in tensors]
        grad = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            value = run()
        except (NotImplementedError, RuntimeError) as error:
            if op == "call_module" or origin < INPUTS or target in _PACKING:
                value = self._run_for_real(op, target, args, kwargs)
            elif _shape_is_unknown(error):
                raise DataDependentError(
                    f"the size of what `{getattr(target, '__name__', target)}` gives depends on the values of the input"
                ) from error
            else:
                raise
        finally:
            torch._C._set_grad_enabled(grad)
        mutated = [tensor for tensor, version in zip(tensors, versions, strict=True) if tensor._version != version]
        if not mutated and op != "call_module" and not trees.has_tensor(value) and (value is not None):
            if origin < INPUTS and trees.tensors(inputs) and isinstance(value, (bool, int, float)):
                return self.concrete(self.create_node(op, target, args, kwargs, value, origin))
            return value
        node = self.create_node(op, target, args, kwargs, value, max(origin, NOTHING))
        self._note_mutation(node, mutated)
        self._note_random(node)
        if any(tensor is value for tensor in mutated):
            # From here on the tensor is what this node made of it.
            remember(key, value, tensors, mutated)
        elif isinstance(value, Tensor) and (id(value) in self.known or id(value) in self.attributes):
            # The very tensor that came in: a name of its own, or the input would be taken for this node's output.
            value = node.meta["value"] = value.detach()
        elif not mutated or type(value) is Tensor:
            remember(key, value, tensors, mutated)
        return self.adopt(value, node)

    def _note_mutation(self, node: fx.Node, mutated: list[Tensor]) -> None:
        if mutated:
            node.meta["mutates"] = tuple(self.node_of(tensor).name for tensor in mutated)
            for tensor in mutated:
                self._outdate(tensor)
            self.origin[node] = INPUTS

    def _note_random(self, node: fx.Node) -> None:
        if Trait.RANDOM in traits(node):
            node.meta["random"] = True
            self.origin[node] = INPUTS

    def _outdate(self, tensor: Tensor) -> None:
        """What may share memory with a changed tensor can no longer be computed from its node alone."""
        entry = self.known.get(id(tensor))
        stack = [] if entry is None else [entry[1]]
        while stack:
            node = stack.pop()
            if self.origin[node] < INPUTS:
                self.origin[node] = INPUTS
                stack.extend(node.all_input_nodes)
                stack.extend(node.users)

    def _run_for_real(self, op: str, target: Any, args: Any, kwargs: Any) -> Any:
        node = self.create_node(op, target, args, kwargs, None, NOTHING)
        try:
            value = self.concrete(node, only_layout=True)
        finally:
            self.graph.erase_node(node)
        return trees.map_tensors(lambda tensor: tensor.detach().to(META), value)

    def call_module(self, module: nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Records the call of a leaf as one node, and of any other module as what it does."""
        path = self.paths.get(id(module))
        if path is None or self.running_leaf or not self.active:
            return call(module, *args, **kwargs)
        if type(module) is nn.Identity and len(args) == 1 and not has_forward_hooks(module):
            return args[0]
        count = self._calls[path] = self._calls.get(path, -1) + 1
        self.scope.append((path, count))
        try:
            if path and (isinstance(module, (ByMode, ApplyFunction)) or self.is_leaf(module, path)):
                if has_forward_hooks(module):
                    return self._call_hooked(module, path, call, args, kwargs)
                with torch._C.DisableTorchFunction():
                    return self._call_leaf(module, path, call, args, kwargs)
            return call(module, *args, **kwargs)
        except BaseException:
            if self.failed_in is None:
                self.failed_in = path
            raise
        finally:
            self.scope.pop()

    def _call_hooked(self, module: nn.Module, path: str, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Records what the hooks of a leaf do, and between them the leaf, which is without hooks in the graph."""
        forward, own = module.forward, "forward" in vars(module)

        def only_forward(_: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs)

        def leaf(*args: Any, **kwargs: Any) -> Any:
            with torch._C.DisableTorchFunction():
                return self._call_leaf(module, path, only_forward, args, kwargs)

        module.forward = leaf
        try:
            return call(module, *args, **kwargs)
        finally:
            if own:
                module.forward = forward
            else:
                del module.forward

    def _call_leaf(self, module: nn.Module, path: str, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        symbolic, values, origin = self.lower_all(args)
        symbolic_kwargs, kwarg_values, kwarg_origin = self.lower_all(kwargs.values())

        def run() -> Any:
            self.running_leaf += 1
            try:
                return call(module, *values, **dict(zip(kwargs, kwarg_values, strict=True)))
            finally:
                self.running_leaf -= 1

        origin = max(origin, kwarg_origin, PARAMETERS)
        named = dict(zip(kwargs, symbolic_kwargs, strict=True))
        inputs = (*values, *kwarg_values)
        key = leaf_key(module, tuple(kwargs), inputs)
        return self.record("call_module", path, symbolic, named, origin, run, inputs, key)

    def apply_function(self, function: type[torch.autograd.Function], call: Callable[..., Any], args: Any) -> Any:
        """Records `function.apply(*args)`."""
        if self.running_leaf or not self.active:
            return call(*args)
        if runs_modules(args):
            return self._open_function(function, args)
        return self._call_made(f"_{function.__name__.lower()}", ApplyFunction(function), call, args)

    def _open_function(self, function: type[torch.autograd.Function], args: Any) -> Any:
        """Records what `function.forward` does; autograd, which `forward` turns off and detaches from, will see it."""
        self.notes.append(
            f"`{function.__name__}` in {self.where()} runs modules: the graph has what it computes, and their "
            "gradients are those of autograd, not of its own `backward`."
        )
        before = torch.is_grad_enabled()
        self.opened += 1
        try:
            return run_forward(function, args)
        finally:
            self.opened -= 1
            torch._C._set_grad_enabled(before)

    def divide_by_spectral_norm(self, hook: SpectralNorm, owner: nn.Module, do_power_iteration: bool) -> Any:
        """Records what the hook of `nn.utils.spectral_norm` makes of the weight of `owner`."""
        path = self.paths[id(owner)]
        name = f"{path}.{hook.name}_spectral_norm".removeprefix(".")
        made = DivideBySpectralNorm(hook).train(do_power_iteration)
        return self._call_made(name, made, made, [getattr(owner, hook.name + end) for end in ("_orig", "_u", "_v")])

    def _call_made(self, path: str, module: nn.Module, call: Callable[..., Any], args: Any) -> Any:
        """Records the call of a module that the graph has in addition to the model's own."""
        self.functions[path] = module
        with torch._C.DisableTorchFunction():
            symbolic, values, origin = self.lower_all(args)

            def run() -> Any:
                self.running_leaf += 1
                try:
                    return call(*values)
                finally:
                    self.running_leaf -= 1

            return self.record("call_module", path, symbolic, {}, origin, run, values)

    def set_grad_enabled(self, func: Any, enabled: bool) -> None:
        """Records regions without gradients, unless all that is computed in them has none anyway."""
        before = torch.is_grad_enabled()
        func(enabled)
        if enabled == before or self.running_leaf or self.opened or not self.active:
            return
        if self._grad_region is None:
            saved = self.create_node("call_function", torch.is_grad_enabled, (), {}, before, INPUTS)
            node = self.create_node("call_function", func, (enabled,), {}, None, INPUTS)
            self._grad_region = (saved, node, self.differentiable)
            return
        saved, node, count = self._grad_region
        self._grad_region = None
        if self.differentiable == count:
            self.graph.erase_node(node)
            self.graph.erase_node(saved)
        else:
            self.create_node("call_function", func, (saved,), {}, None, INPUTS)


# --- helpers ----------------------------------------------------------------------------------------------------------


def _shape_is_unknown(error: Exception) -> bool:
    """Whether a function failed on the meta device because its result has no size before it has values."""
    return any(name in repr(error) for name in _SIZED_BY_VALUES)


_SIZED_BY_VALUES = ("DynamicOutputShape", "nonzero", "masked_select", "unique", "bincount", "repeat_interleave", "nms")


@functools.cache
def _constructors() -> frozenset[Any]:
    return frozenset(_device_constructors())

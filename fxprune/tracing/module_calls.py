"""Calls of modules and of autograd Functions: one node, or what they compute."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.spectral_norm import SpectralNorm

from fxprune.running import trees
from fxprune.running.copies import META
from fxprune.running.eager import run_forward, runs_modules
from fxprune.tracing.drawing import array_drawn
from fxprune.tracing.graph_builder import Origin
from fxprune.tracing.leaf_settings import LeafSettings
from fxprune.tracing.library_modules import has_forward_hooks, may_follow_mode
from fxprune.tracing.meta_results import leaf_key, of_one_step
from fxprune.tracing.own_gradients import has_gradients_of_autograd
from fxprune.tracing.recorder import Recorder
from fxprune.tracing.sizes import plain
from fxprune.tracing.traced_module import ApplyFunction, ByMode, DivideBySpectralNorm, DrawNumbers

__all__ = ["ModuleCalls"]


class ModuleCalls:
    """Records the calls of modules; `is_leaf` says which modules are one node.

    Attributes:
        changed: the paths of those among them that forward has changed before a call, which is what they compute.
        may_follow_mode: the paths of those among them that may return something of another kind in training.
    """

    def __init__(self, recorder: Recorder, is_leaf: Callable[[nn.Module, str], bool]) -> None:
        self.changed: set[str] = set()
        self._recorder = recorder
        self._is_leaf = is_leaf
        self._settings = LeafSettings(recorder.builder.root)
        # The paths of the modules that the graph has in addition, by what they were made for.
        self._added: dict[Any, str] = {}
        self._as_autograd: dict[Any, bool] = {}
        self.may_follow_mode: set[str] = set()

    def call(self, module: nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record the call of a leaf as one node, and of any other module as what it does."""
        scopes = self._recorder.scopes
        path = scopes.path_of(module)
        if path is None:
            return call(module, *args, **kwargs)
        if isinstance(module, DrawNumbers):
            return self.draw(module.function, args, kwargs, path)
        hooked = has_forward_hooks(module)
        if type(module) is nn.Identity and len(args) == 1 and not hooked:
            return args[0]
        with scopes.new_call(path):
            if not path or not (isinstance(module, (ByMode, ApplyFunction)) or self._is_whole(module, path)):
                return call(module, *args, **kwargs)
            if may_follow_mode(module):
                self.may_follow_mode.add(path)
            if hooked:
                return self._call_hooked(module, path, call, args, kwargs)
            return self._call_leaf(module, path, call, args, kwargs)

    def _is_whole(self, module: nn.Module, path: str) -> bool:
        whole = self._is_leaf(module, path)
        if whole and self._settings.are_changed(module):
            self.changed.add(path)
        return whole and path not in self.changed

    def _call_hooked(self, module: nn.Module, path: str, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record what the hooks of a leaf do, and between them the leaf, which is without hooks in the graph."""
        forward, own = module.forward, "forward" in vars(module)

        def only_forward(_: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs)

        def leaf(*args: Any, **kwargs: Any) -> Any:
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
        result = self._record(path, of_one_step(module, functools.partial(call, module)), args, kwargs, leaf=module)
        self._settings.note(module)
        return result

    def apply(self, function: type[torch.autograd.Function], call: Callable[..., Any], args: Any) -> Any:
        """Record `function.apply(*args)`."""
        if runs_modules(args):
            self._recorder.builder.remarks.append(
                f"`{function.__name__}` in {self._recorder.scopes.described} runs modules: the graph has what it "
                "computes, and their gradients are those of autograd, not of its own `backward`."
            )
            return self._inline(function, args)
        if self._is_as_autograd(function, args):
            return self._inline(function, args)
        path = self._added_path(function, f"_{function.__name__.lower()}", lambda: ApplyFunction(function))
        return self._record(path, call, args, {})

    def _is_as_autograd(self, function: type[torch.autograd.Function], args: Any) -> bool:
        """As `has_gradients_of_autograd`, which is asked once for arguments of the same sizes."""
        key = function, tuple(arg.shape if isinstance(arg, Tensor) else repr(arg) for arg in args)
        if key not in self._as_autograd:
            with self._recorder.switch.paused():
                self._as_autograd[key] = has_gradients_of_autograd(function, args)
        return self._as_autograd[key]

    def _inline(self, function: type[torch.autograd.Function], args: Any) -> Any:
        """Record what `function.forward` does; autograd, which `forward` turns off and detaches from, will see it."""
        with self._recorder.regions.inlining():
            return run_forward(function, args)

    def draw(self, function: FunctionType, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = "") -> Any:
        """Record the call of a helper that draws an array of random numbers by sizes; call any other.

        Args:
            function: the helper.
            args, kwargs: its arguments.
            path: of the module that calls it, in a graph that is traced again.
        """
        recorder = self._recorder
        if trees.has_tensor((args, kwargs)):
            return function(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            plain_args, plain_kwargs = fx.node.map_aggregate((args, kwargs), plain)
        with recorder.switch.paused():
            array = array_drawn(lambda: function(*plain_args, **plain_kwargs))
            layout = None if array is None else torch.from_numpy(array).to(META)
        if layout is None:
            return function(*args, **kwargs)
        path = path or self._added_path(function, f"_{function.__name__}", lambda: DrawNumbers(function))
        drawn = self._record(path, lambda *_, **__: torch.empty_like(layout), args, kwargs)
        node = recorder.builder.node_of(drawn)
        node.meta["random"], recorder.builder.origin[node] = True, Origin.INPUTS
        return drawn

    def divide_by_spectral_norm(self, hook: SpectralNorm, owner: nn.Module, path: str, training: bool) -> Any:
        """Record what the hook of `nn.utils.spectral_norm` makes of the weight of `owner`, whose path is given."""
        stem = f"{path}.{hook.name}_spectral_norm".removeprefix(".")
        path = self._added_path(hook, stem, lambda: DivideBySpectralNorm(hook))
        divide = self._recorder.builder.added_modules[path].train(training)
        return self._record(path, divide, [getattr(owner, hook.name + end) for end in ("_orig", "_u", "_v")], {})

    def _added_path(self, made_for: Any, stem: str, make: Callable[[], nn.Module]) -> str:
        if made_for not in self._added:
            self._added[made_for] = self._recorder.builder.add_module(stem, make())
        return self._added[made_for]

    def _record(
        self, path: str, call: Callable[..., Any], args: Any, kwargs: Any, *, leaf: nn.Module | None = None
    ) -> Any:
        recorder = self._recorder
        with torch._C.DisableTorchFunction():
            lowered = recorder.lowering.lower_call(args, kwargs)
            key = None
            if leaf is not None:
                lowered = lowered._replace(origin=max(lowered.origin, Origin.PARAMETERS))
                key = leaf_key(leaf, tuple(kwargs), lowered.all_values)

            def run() -> Any:
                with recorder.switch.paused():
                    return call(*lowered.values, **lowered.named_values)

            return recorder.record("call_module", path, lowered, run, key)

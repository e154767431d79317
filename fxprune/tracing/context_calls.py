"""What shows the recorder that contexts of torch are entered and left, that their state is read, and checks.

Torch does not show that to a `TorchFunctionMode`. So these methods and functions are replaced while a model is traced,
and what replaces them asks the mode in force, if there is one.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from types import FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.overrides import handle_torch_function

from fxprune.errors import FxpruneError
from fxprune.running.regions import GENERATORS
from fxprune.tracing.graph_builder import Origin
from fxprune.tracing.recorder import Recorder, SpecialCall
from fxprune.tracing.unknown import Unknown
from fxprune.tracing.user_code import is_library_file

__all__ = ["CONTEXT_CALLS", "READERS", "context_patches"]

_Autocast, _Generator = torch.amp.autocast_mode.autocast, contextlib._GeneratorContextManager
_GRAD_MODES = (torch.no_grad, torch.enable_grad, torch.set_grad_enabled)
#: What is done in place of the call of a stand-in, while a model is recorded.
CONTEXT_CALLS: dict[Any, SpecialCall] = {}
_patches: list[tuple[Any, str, Any]] = []


def _replace(owner: Any, name: str, handler: SpecialCall, shown: Callable[..., bool] = lambda *_: True) -> Any:
    """Have the recorder see the calls that `shown` says; the handler gets the original function."""
    original = vars(owner)[name]

    @functools.wraps(original)
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        if torch._C._is_torch_function_mode_enabled() and shown(*args):
            return handle_torch_function(stand_in, (), *args, **kwargs)
        return original(*args, **kwargs)

    CONTEXT_CALLS[stand_in] = lambda recorder, _, *args, **kwargs: handler(recorder, original, *args, **kwargs)
    _patches.append((owner, name, stand_in))
    return stand_in


def context_patches() -> Iterator[tuple[Any, str, Any]]:
    """Where a stand-in goes: the class or module, the name, and the stand-in."""
    yield from _patches
    yield _Autocast, "__init__", _init_autocast


# --- contexts ---------------------------------------------------------------------------------------------------------


def _init_autocast(
    self: Any, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: bool | None = None
) -> None:
    _INIT(self, device_type, dtype, enabled, cache_enabled)
    # It fills in what is not given from the state of that time.
    self.given = device_type, dtype, enabled, cache_enabled


_INIT = _Autocast.__init__


def _enter_autocast(recorder: Recorder, original: Any, manager: Any) -> Any:
    resolved = manager.device, manager.fast_dtype, manager._enabled, manager._cache_enabled
    device, *rest = getattr(manager, "given", resolved)
    if recorder.assumes_autocast and rest[1]:
        raise FxpruneError("forward enters autocast depending on whether it is in autocast, in a way that is not known")
    recorder.assumes_autocast = False
    entered = original(manager)
    recorder.regions.enter(manager, "autocast", recorder.regions.device_of(device), *rest)
    return entered


def _enter_grad_mode(recorder: Recorder, original: Any, manager: Any) -> None:
    enabled = manager.mode if isinstance(manager, torch.set_grad_enabled) else isinstance(manager, torch.enable_grad)
    original(manager)
    recorder.regions.enter(manager, "grad", enabled)


def _enter_inference_mode(recorder: Recorder, original: Any, manager: Any) -> None:
    # The recorder needs the versions of tensors, which this mode does not count.
    manager.grad_before = torch.is_grad_enabled()
    recorder.inference_modes.append(manager.mode)
    recorder.regions.enter(manager, "inference_mode", manager.mode)
    torch._C._set_grad_enabled(not manager.mode)


def _exit_inference_mode(recorder: Recorder, original: Any, manager: Any, *error: Any) -> None:
    torch._C._set_grad_enabled(manager.grad_before)
    recorder.inference_modes.pop()
    recorder.regions.exit(manager)


def _enter_generator(recorder: Recorder, original: Any, manager: Any) -> Any:
    kind, args, kwargs = GENERATORS[manager.func], manager.args, dict(manager.kwds)
    if kind == "sdpa_kernel":
        backends = kwargs.pop("backends") if "backends" in kwargs else args[0]
        names = [backend.name for backend in (backends if isinstance(backends, list) else [backends])]
        args = (names, *args[1:])
    entered = original(manager)
    manager.is_region = True
    recorder.regions.enter(manager, kind, *args, **kwargs)
    return entered


def _exit(recorder: Recorder, original: Any, manager: Any, *error: Any) -> Any:
    try:
        return original(manager, *error)
    finally:
        recorder.regions.exit(manager)


def _is_known(manager: Any) -> bool:
    return type(manager.func) is FunctionType and manager.func in GENERATORS


_replace(_Autocast, "__enter__", _enter_autocast)
_replace(_Autocast, "__exit__", _exit)
for _mode in _GRAD_MODES:
    _replace(_mode, "__enter__", _enter_grad_mode)
    _replace(_mode, "__exit__", _exit)
_replace(torch.inference_mode, "__enter__", _enter_inference_mode)
_replace(torch.inference_mode, "__exit__", _exit_inference_mode)
_replace(_Generator, "__enter__", _enter_generator, _is_known)
_replace(_Generator, "__exit__", _exit, lambda manager, *_: hasattr(manager, "is_region"))


# --- functions that read or set a state -------------------------------------------------------------------------------


def _set(recorder: Recorder, original: Any, *args: Any, **kwargs: Any) -> Any:
    recorder.regions.call(original, args, kwargs)
    return original(*args, **kwargs)


def _read(recorder: Recorder, original: Any, *args: Any) -> Any:
    value = original(*args)
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code is not _CODE_OF_STAND_INS:
        frame = frame.f_back
    caller = frame.f_back
    if caller is not None and value is False and _only_leaves_autocast(caller):
        recorder.assumes_autocast = True
        return True
    recorder.regions.check_setting(original, args, value)
    return value


def _new_seed(recorder: Recorder, original: Any) -> Any:
    """It is another one in each call, in the graph as well."""
    node = recorder.builder.create_node("call_function", original, (), {}, seed := original(), Origin.INPUTS)
    node.meta["random"] = True
    return recorder.sizes.number_of(node, seed)


def _default_dtype(recorder: Recorder, original: Any) -> torch.dtype:
    recorder.regions.check_state(original, dtype := original())
    return dtype  # type: ignore[no-any-return]


def _is_inference_mode(recorder: Recorder, original: Any) -> bool:
    own = recorder.inference_modes
    return own[-1] if own else recorder.facts.inference_mode(original())


def _only_leaves_autocast(frame: FrameType) -> bool:
    """Whether a function leaves autocast if it is in it, and else does nothing: leaving it is the same both times."""
    chooses = {"autocast", "nullcontext"} <= set(frame.f_code.co_names)
    return chooses and frame.f_locals.get("enabled") is False


def _by_user(*_: Any) -> bool:
    """Whether a stand-in is called by other code than torch's, as that of a traced graph."""
    name = sys._getframe(2).f_code.co_filename
    return not is_library_file(name) or name.startswith("<eval_with_key")


def _check(recorder: Recorder, original: Any, *args: Any, **kwargs: Any) -> None:
    """A check computes nothing: one of values of the input is traced past."""
    if not any(isinstance(arg, (Tensor, Unknown)) for arg in (*args, *kwargs.values())):
        original(*args, **kwargs)


for _name in (
    "_check", "_check_with", "_check_index", "_check_value", "_check_type", "_check_not_implemented", "_check_is_size",
    "_check_tensor_all", "_check_tensor_all_with", "_assert",
):  # fmt: skip
    _replace(torch, _name, _check)


def _without_checks(recorder: Recorder, original: Any, made: Any, *shapes: Any, **given: Any) -> None:
    """A distribution checks its parameters when it is made, and samples later; that computes nothing either."""
    original(made, *shapes[:2], **given | {"validate_args": False})


_replace(Distribution, "__init__", _without_checks)
for _owner in (torch, torch.random):
    _replace(_owner, "manual_seed", _set)
    _replace(_owner, "seed", _new_seed)
_replace(torch, "set_default_dtype", _set)
#: The stand-ins for functions that read a state, by the function.
READERS: dict[Any, Any] = {}
for _name in (
    "is_autocast_enabled", "is_autocast_cpu_enabled", "get_autocast_dtype", "get_autocast_gpu_dtype",
    "get_autocast_cpu_dtype",
):  # fmt: skip
    READERS[getattr(torch, _name)] = _stand_in = _replace(torch, _name, _read, _by_user)
for _name, _handler in (("get_default_dtype", _default_dtype), ("is_inference_mode_enabled", _is_inference_mode)):
    READERS[getattr(torch, _name)] = _replace(torch, _name, _handler, _by_user)
_CODE_OF_STAND_INS = _stand_in.__code__

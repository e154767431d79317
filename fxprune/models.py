"""Models by name, and the inputs they are made for.

timm and torchvision are imported only for a model of theirs; fxprune needs neither.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneError

__all__ = ["Source", "example_inputs", "load_model", "source_of"]

_SPEC_HELP = "give timm:NAME, torchvision:NAME or package.module:callable"

# torchvision states an input size with weights, not with a model: these are the sizes that the weights were trained at,
# by the module that a model's class is in.
_TORCHVISION_SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "torchvision.models.inception": ((1, 3, 299, 299),),
    "torchvision.models.quantization.inception": ((1, 3, 299, 299),),
    "torchvision.models.segmentation": ((1, 3, 520, 520),),
    "torchvision.models.optical_flow": ((1, 3, 520, 960), (1, 3, 520, 960)),
    "torchvision.models.video.resnet": ((1, 3, 16, 112, 112),),
    "torchvision.models.video": ((1, 3, 16, 224, 224),),
    "torchvision.models": ((1, 3, 224, 224),),
}


@dataclass(frozen=True)
class Source:
    """How a model is built: the arguments of `load_model`."""

    spec: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


# Of the models that `load_model` has built.
_SOURCES: weakref.WeakKeyDictionary[nn.Module, Source] = weakref.WeakKeyDictionary()


def load_model(spec: str, **kwargs: Any) -> nn.Module:
    """Build the model that ``spec`` names.

    Args:
        spec: ``"timm:NAME"``, ``"torchvision:NAME"``, or ``"package.module:callable"`` for your own code, where calling
            ``callable(**kwargs)`` returns the model.
        kwargs: passed to ``timm.create_model``, ``torchvision.models.get_model`` or the callable. ``pretrained``
            (default False) loads trained weights of timm or torchvision.

    Raises:
        FxpruneError: there is no such model (the message has similar names), or its library is not installed.

    Examples:
        >>> type(load_model("torch.nn:Linear", in_features=3, out_features=2)).__name__
        'Linear'
    """
    prefix, separator, name = spec.partition(":")
    if not separator or not prefix or not name:
        guess = f" (timm:{spec}?)" if spec and not separator else ""
        raise FxpruneError(f"model {spec!r} is not understood: {_SPEC_HELP}{guess}")
    if prefix == "timm":
        build: Callable[..., Any] = _timm_builder(spec, name)
    elif prefix == "torchvision":
        build = _torchvision_builder(spec, name)
    else:
        build = _callable_builder(spec, prefix, name)
    try:
        model = build(**kwargs)
    except FxpruneError:
        raise
    except Exception as error:
        given = f" with {', '.join(f'{key}={value!r}' for key, value in kwargs.items())}" if kwargs else ""
        raise FxpruneError(f"model {spec!r} could not be built{given}: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise FxpruneError(f"model {spec!r} gave a {type(model).__name__}, not a torch.nn.Module")
    _SOURCES[model] = Source(spec, {key: value for key, value in kwargs.items() if key != "pretrained"})
    return model


def source_of(model: nn.Module) -> Source | None:
    """How to build a model again, without its weights; None if that is not known.

    It is known of what `load_model` has built, and in part of timm models, which do not record most arguments of
    `timm.create_model`: compare what you build with the model.
    """
    if model in _SOURCES:
        return _SOURCES[model]
    config = getattr(model, "pretrained_cfg", None)
    architecture = _entry(config, "architecture")
    if not isinstance(architecture, str) or not type(model).__module__.startswith("timm."):
        return None
    arguments: dict[str, Any] = {}
    classes = getattr(model, "num_classes", None)
    if isinstance(classes, int):
        arguments["num_classes"] = classes
    shapes, usual = _timm_shapes(model), _entry(config, "input_size")
    if shapes is not None:
        _, channels, height, width = shapes[0]
        if channels != usual[0]:
            arguments["in_chans"] = channels
        if (height, width) != tuple(usual[1:]):
            arguments["img_size"] = [height, width]
    return Source(f"timm:{architecture}", arguments)


def example_inputs(model: nn.Module) -> tuple[Tensor, ...]:
    """The default input of a timm or torchvision model: batch 1, on the model's device and in its dtype.

    The values are standard normal from a fixed seed, the same in each call; the global random state is left alone.

    Raises:
        FxpruneError: the model is of neither library, or does not take images.
    """
    shapes = _timm_shapes(model) or _torchvision_shapes(model)
    if type(model).__module__.startswith("torchvision.models.detection") and hasattr(model, "backbone"):
        raise FxpruneError(
            f"no example inputs: {type(model).__name__} is a detector: its operations depend on the values of the "
            "boxes that it finds, so there is no graph of it; prune its parts: `fxprune.prune_parts(model, 0.5, "
            "example_inputs=([torch.rand(3, 320, 320)],))`"
        )
    if shapes is None:
        raise FxpruneError(
            f"no example inputs: {type(model).__name__} is neither a timm nor a torchvision model that takes images, "
            "so its inputs are not known; pass example_inputs=, a tensor, a tuple of tensors or a dict of keyword "
            "arguments, for example torch.randn(1, 3, 224, 224)"
        )
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator).to(like.device, like.dtype) for shape in shapes)


def _import(spec: str, module: str, remedy: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise FxpruneError(f"model {spec!r} needs {module}, which cannot be imported ({error}): {remedy}") from error


def _unknown(spec: str, name: str, known: Iterable[str], prefix: str) -> FxpruneError:
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    hint = f"; did you mean {', '.join(f'{prefix}:{match}' for match in close)}?" if close else ""
    return FxpruneError(f"model {spec!r}: {prefix} has no {name!r}{hint}")


def _timm_builder(spec: str, name: str) -> Callable[..., Any]:
    timm = _import(spec, "timm", "pip install timm")
    # timm itself looks up a name with a scheme (hf-hub:, local-dir:).
    architecture = name.split(".")[0]
    if ":" not in name and not timm.is_model(architecture):
        raise _unknown(spec, architecture, timm.list_models(), "timm")

    def build(pretrained: bool = False, **kwargs: Any) -> Any:
        return timm.create_model(name, pretrained=pretrained, **kwargs)

    return build


def _torchvision_builder(spec: str, name: str) -> Callable[..., Any]:
    models = _import(spec, "torchvision.models", "pip install torchvision")
    if name not in models.list_models():
        raise _unknown(spec, name, models.list_models(), "torchvision")

    def build(pretrained: bool = False, **kwargs: Any) -> Any:
        if name in ("googlenet", "inception_v3") and not pretrained:
            # Without it, the default is True, with a warning that this will change.
            kwargs.setdefault("init_weights", True)
        kwargs.setdefault("weights", "DEFAULT" if pretrained else None)
        if not pretrained and "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
            # Without it, torchvision downloads trained weights for the backbone.
            kwargs.setdefault("weights_backbone", None)
        return models.get_model(name, **kwargs)

    return build


def _callable_builder(spec: str, module_name: str, name: str) -> Callable[..., Any]:
    module = _import(spec, module_name, _SPEC_HELP)
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            raise _unknown(spec, part, [key for key in dir(value) if not key.startswith("_")], module_name)
        value = getattr(value, part)
    if not callable(value):
        raise FxpruneError(f"model {spec!r}: {name} is a {type(value).__name__}, which cannot be called")
    build: Callable[..., Any] = value
    return build


def _timm_shapes(model: nn.Module) -> tuple[tuple[int, ...], ...] | None:
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = _entry(config, "input_size")
    if not isinstance(size, (tuple, list)) or len(size) != 3:
        return None
    channels, height, width = size
    # The config is that of the checkpoint; the model may have been built for another image size or other channels.
    built_size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if isinstance(built_size, int):
        height = width = built_size
    elif isinstance(built_size, (tuple, list)) and len(built_size) == 2:
        height, width = built_size
    return ((1, _timm_channels(model, config, channels), height, width),)


def _timm_channels(model: nn.Module, config: Any, channels: int) -> int:
    first = _entry(config, "first_conv")
    name = first[0] if isinstance(first, (tuple, list)) and first else first
    modules = dict(model.named_modules()) if isinstance(name, str) else {}
    conv = modules.get(name) if isinstance(name, str) else None
    if not isinstance(conv, nn.Conv2d):
        return channels
    # A stem that folds patches of 2 x 2 or 4 x 4 pixels into channels has a square multiple of the image's channels.
    multiple, rest = divmod(conv.in_channels, channels)
    folded = rest == 0 and math.isqrt(multiple) ** 2 == multiple
    return channels if folded else conv.in_channels


def _entry(config: Any, key: str) -> Any:
    return config.get(key) if isinstance(config, dict) else getattr(config, key, None)


def _torchvision_shapes(model: nn.Module) -> tuple[tuple[int, ...], ...] | None:
    module = type(model).__module__
    if module.startswith("torchvision.models.detection"):
        return None  # takes a list of images
    while module.startswith("torchvision.models"):
        if module in _TORCHVISION_SHAPES:
            size = getattr(model, "image_size", None)
            return ((1, 3, size, size),) if isinstance(size, int) else _TORCHVISION_SHAPES[module]
        module = module.rpartition(".")[0]
    return None

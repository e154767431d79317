"""Which modules become one node of the graph: those of torch that are not made of other modules."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fxprune.running.mode_blocks import ChooseByMode
from fxprune.tracing.traced_module import ApplyFunction, ByMode

__all__ = ["has_forward_hooks", "is_library_module", "may_follow_mode"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
# Modules of torch that are made of other modules and functions: they are traced, so that their parts can be pruned.
_COMPOSED = (
    nn.MultiheadAttention, nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder, nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer, nn.PairwiseDistance, nn.CosineSimilarity, nn.modules.loss._Loss,
    *(getattr(nn.modules.padding, f"_{kind}PadNd") for kind in ("Constant", "Reflection", "Replication", "Circular")),
)  # fmt: skip


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether a call of the module does more than its `forward`."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def is_library_module(module: nn.Module) -> bool:
    """Whether a module is recorded as one call."""
    if isinstance(module, (ByMode, ChooseByMode, ApplyFunction)):
        return True
    return _is_layer(module)


def may_follow_mode(module: nn.Module) -> bool:
    """Whether a module that is one call may return something of another kind in training."""
    return not (isinstance(module, ApplyFunction) or _is_layer(module))


def _is_layer(module: nn.Module) -> bool:
    # A bare nn.Module is a container of modules that its owner calls; a layer may have been given another `forward`.
    if isinstance(module, (*_COMPOSED, *_CONTAINERS)) or type(module) is nn.Module or "forward" in vars(module):
        return False
    if _makes_its_weights(module):
        return False
    name = type(module).__module__
    return name.startswith(("torch.nn.modules.", "torch.ao."))


def _makes_its_weights(module: nn.Module) -> bool:
    """Whether a module computes its weights: by a parametrisation, or by a hook, as in `nn.utils.weight_norm`."""
    hooks = module._forward_pre_hooks.values()
    return "parametrizations" in module._modules or any(
        isinstance(hook, (WeightNorm, SpectralNorm, BasePruningMethod)) for hook in hooks
    )

"""The original of a pruned model, built again where timm or torchvision can build it."""

from __future__ import annotations

import torch
from torch import nn

from fxprune.errors import FxpruneError
from fxprune.files.sources import trusted_source
from fxprune.models import load_model
from fxprune.provenance import pruning_notes
from fxprune.running.copies import named_tensors
from fxprune.tracing.notes import trace_notes

__all__ = ["rebuilt"]


def rebuilt(pruned: nn.Module, *, pretrained: bool = False) -> nn.Module | None:
    """The original with random or with the library's trained weights.

    As in `fxprune.load`, only models of timm and torchvision are built because a checkpoint names them.

    Returns:
        The model in eval; None where its source is not known, or where the library has changed the model since.

    Raises:
        FxpruneError: its source is not known, with `pretrained`.
    """
    try:
        source = trusted_source("the pruned model", trace_notes(pruned).source)
        with torch.random.fork_rng(devices=[]):
            model = load_model(source.spec, pretrained=pretrained, **source.arguments)
    except FxpruneError:
        if pretrained:
            raise
        return None
    if pruning_notes(pruned).original.misfit(named_tensors(model)):
        return None
    like = next((tensor for tensor in named_tensors(pruned).values() if tensor.is_floating_point()), None)
    return model.eval() if like is None else model.eval().to(like.device, like.dtype)

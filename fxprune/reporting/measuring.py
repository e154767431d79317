"""What takes a run of the models: the certificate and the peak memory."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxprune.provenance import pruning_notes
from fxprune.reporting.facts import Certificate, Memory
from fxprune.running.copies import named_tensors
from fxprune.running.peak import peak_activations
from fxprune.tracing.notes import call_of
from fxprune.verification import verify, verify_structure

__all__ = ["certify", "memory_of"]


def certify(original: nn.Module, pruned: nn.Module, *, random_weights: bool = False) -> Certificate:
    """Compare a pruned model with its zero-masked original.

    Where the outputs differ, training may have changed the weights, or the original has others: then the structure is
    compared, with slices of the original's weights in place of the pruned model's own.

    Args:
        original: the model before pruning, with the weights that it had or, for the structure, any others.
        pruned: a pruned model.
        random_weights: whether the original was built again, with random weights: only the structure is compared.

    Raises:
        FxpruneError: as `fxprune.verify`.
    """
    if random_weights:
        return Certificate(verify_structure(original, pruned), "structure", "rebuilt")
    compensated = bool(pruning_notes(pruned).compensated)
    found = Certificate(verify(original, pruned), "structure" if compensated else "outputs")
    if found.holds or compensated:
        return found
    of_structure = Certificate(verify_structure(original, pruned), "structure")
    return of_structure if of_structure.holds else found


def memory_of(model: nn.Module, example_inputs: Any = None, *, run: bool = True) -> Memory:
    """Bytes that a model takes: for its weights, and at the peak of one forward pass in eval mode.

    The peak counts all tensors that exist at the same time, as torch's operators return them, but not what an operator
    allocates for itself.
    """
    weights = {id(tensor): tensor.nbytes for tensor in named_tensors(model).values()}
    own = sum(weights.values())
    if not run:
        return Memory(own, None)
    return Memory(own, own + peak_activations(model, *call_of(model, example_inputs)))

"""Weight reconstruction: a layer is fitted to the outputs that it has in the original (He et al., ICCV 2017).

It is the change D of the weight W that brings the outputs on the pruned inputs x back to the original's outputs y:
``min |(W + D) x - y|^2 + damping |D|^2``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxprune.compensation.ridge import Rows, solve
from fxprune.layers.batch_norm import BatchNorm
from fxprune.layers.contraction import Contraction, rows_of

__all__ = ["FittedLayer", "Reconstruction"]

# Residuals below this fraction of the outputs' squares are rounding. Not tuned.
_ROUNDING = 1e-10
# Rows for each input of the weight, the fewest rows, and the most entries of all rows. Not tuned.
_ROWS_PER_INPUT, _FEWEST_ROWS, _MOST_ENTRIES = 32, 512, 2**26


@dataclass(frozen=True, eq=False)
class FittedLayer:
    """A layer of the pruned model whose weight is fitted.

    Attributes:
        contraction: what it is.
        weight: no other node uses it; changed.
        bias: changed if it is the layer's alone.
        owns_bias: whether no other node uses the bias.
        later_bias: what alone is added to the outputs, as in `x @ weight + bias`, if the layer has no bias; changed.
        norm_node: the BatchNorm that alone reads the outputs, if there is one.
        norm: its module. Its mean changes if there is no bias to change.
    """

    contraction: Contraction
    weight: Tensor
    bias: Tensor | None
    owns_bias: bool
    later_bias: Tensor | None
    norm_node: fx.Node | None
    norm: BatchNorm | None

    @property
    def has_intercept(self) -> bool:
        """Whether something can be added to the outputs."""
        return self.norm is not None or self.owns_bias or self.later_bias is not None


@dataclass(frozen=True)
class Reconstruction:
    """How weights are fitted.

    Attributes:
        fit: the number of batches to fit to; further ones judge.
        samples: the number of samples in these batches.
        positions: about how many positions of all samples to fit to.
        seed: of the positions.
    """

    fit: int
    samples: int
    positions: int
    seed: int

    def apply(
        self, layer: FittedLayer, inputs: Iterable[Tensor], wanted: Iterable[Tensor], damping: Sequence[float]
    ) -> float | None:
        """Fit a layer to the outputs that it should have.

        Args:
            layer: its tensors are changed.
            inputs: what it reads in the pruned model, for each batch.
            wanted: its outputs.
            damping: the strengths to choose from.

        Returns:
            The damping; None where the layer stays as it is.
        """
        rows = self._rows(layer, inputs, wanted) if damping else None
        if rows is None:
            return None
        solution = solve(*rows, damping, centre=layer.has_intercept)
        if solution is None:
            return None
        weight = layer.contraction.by_outputs(layer.weight)
        weight.add_(solution.change.reshape(weight.shape).to(weight))
        if layer.later_bias is not None:
            layer.later_bias.add_(solution.intercept.to(layer.later_bias))
        elif layer.bias is not None and layer.owns_bias:
            layer.bias.add_(solution.intercept.to(layer.bias))
        elif layer.norm is not None:
            layer.norm.running_mean.sub_(solution.intercept.to(layer.norm.running_mean))
        return solution.damping

    def _rows(self, layer: FittedLayer, inputs: Iterable[Tensor], wanted: Iterable[Tensor]) -> tuple[Rows, Rows] | None:
        """Rows to fit to and rows that judge; None where nothing is missing, or outputs cannot be compared."""
        random = torch.Generator().manual_seed(self.seed)
        weight, groups = layer.contraction.by_outputs(layer.weight), layer.contraction.groups
        width = weight[0].numel()
        most = min(self.positions, _ROWS_PER_INPUT * width, _MOST_ENTRIES // max(width * groups, 1))
        per_sample = max(most, _FEWEST_ROWS) / self.samples
        table = weight.reshape(groups, -1, width).transpose(1, 2)
        offset = 0.0 if layer.bias is None else layer.bias.reshape(groups, 1, -1)
        rows, residuals, scale = [], [], 0.0
        for x, y in zip(inputs, wanted, strict=True):
            if x.shape[0] != y.shape[0] or not (layer.contraction.kernel or x.shape[:-1] == y.shape[:-1]):
                # Channels are along the batch: at another batch size it is not known which of its rows are left.
                return None
            a, outputs = rows_of(layer.contraction, x, y, per_sample, random)
            now = (torch.bmm(a.transpose(0, 1), table) + offset).transpose(0, 1)
            rows.append(a)
            residuals.append(outputs - now)
            scale += float(outputs.double().square().sum())
        x, missing, cut = torch.cat(rows), torch.cat(residuals), sum(map(len, rows[: self.fit]))
        if float(missing.double().square().sum()) <= _ROUNDING * scale:
            return None
        return Rows(x[:cut], missing[:cut]), Rows(x[cut:], missing[cut:])

"""Layers that are called with the weights to use, in the place of their own."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["WEIGHT_GIVEN"]


class _ConvGiven:
    def forward(self: Any, input: Tensor, weight: Tensor | None = None) -> Any:  # noqa: A002
        return self._conv_forward(input, self.weight if weight is None else weight, self.bias)


class _Conv1d(_ConvGiven, nn.Conv1d): ...


class _Conv2d(_ConvGiven, nn.Conv2d): ...


class _Conv3d(_ConvGiven, nn.Conv3d): ...


class _Linear(nn.Linear):
    def forward(self, input: Tensor, weight: Tensor | None = None) -> Tensor:  # noqa: A002
        return F.linear(input, self.weight if weight is None else weight, self.bias)


class _RecurrentGiven:
    def forward(self: Any, input: Tensor, hx: Any = None, **weights: Tensor) -> Any:  # noqa: A002
        own = self._flat_weights
        self._flat_weights = [weights.get(name, w) for name, w in zip(self._flat_weights_names, own, strict=True)]
        try:
            return super().forward(input, hx)  # type: ignore[misc]
        finally:
            self._flat_weights = own


class _LSTM(_RecurrentGiven, nn.LSTM): ...  # type: ignore[misc]


class _GRU(_RecurrentGiven, nn.GRU): ...  # type: ignore[misc]


class _RNN(_RecurrentGiven, nn.RNN): ...  # type: ignore[misc]


class _CellGiven:
    def forward(self: Any, input: Tensor, hx: Any = None, weight_hh: Tensor | None = None) -> Any:  # noqa: A002
        if weight_hh is None:
            return super().forward(input, hx)  # type: ignore[misc]
        return functional_call(self, {"weight_hh": weight_hh}, (input, hx))


class _LSTMCell(_CellGiven, nn.LSTMCell): ...


class _GRUCell(_CellGiven, nn.GRUCell): ...


class _RNNCell(_CellGiven, nn.RNNCell): ...


# Of a subclass it is not known what it does with its weights.
WEIGHT_GIVEN: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: _Conv1d,
    nn.Conv2d: _Conv2d,
    nn.Conv3d: _Conv3d,
    nn.Linear: _Linear,
    nn.LSTM: _LSTM,
    nn.GRU: _GRU,
    nn.RNN: _RNN,
    nn.LSTMCell: _LSTMCell,
    nn.GRUCell: _GRUCell,
    nn.RNNCell: _RNNCell,
}

"""Layers that take the weight to use as an argument of their call, in place of their own."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["WITH_WEIGHT_ARGUMENT"]


class _Conv:
    def forward(self: Any, input: Tensor, weight: Tensor | None = None) -> Any:  # noqa: A002
        return self._conv_forward(input, self.weight if weight is None else weight, self.bias)


class _Conv1d(_Conv, nn.Conv1d): ...


class _Conv2d(_Conv, nn.Conv2d): ...


class _Conv3d(_Conv, nn.Conv3d): ...


class _Linear(nn.Linear):
    def forward(self, input: Tensor, weight: Tensor | None = None) -> Tensor:  # noqa: A002
        return F.linear(input, self.weight if weight is None else weight, self.bias)


class _Recurrent:
    def forward(self: Any, input: Tensor, hx: Any = None, **weights: Tensor) -> Any:  # noqa: A002
        own = self._flat_weights
        try:
            self._flat_weights = [weights.get(name, w) for name, w in zip(self._flat_weights_names, own, strict=True)]
            return super().forward(input, hx)  # type: ignore[misc]
        finally:
            self._flat_weights = own


class _LSTM(_Recurrent, nn.LSTM): ...  # type: ignore[misc]


class _GRU(_Recurrent, nn.GRU): ...  # type: ignore[misc]


class _RNN(_Recurrent, nn.RNN): ...  # type: ignore[misc]


class _Cell:
    def forward(self: Any, input: Tensor, hx: Any = None, weight_hh: Tensor | None = None) -> Any:  # noqa: A002
        if weight_hh is None:
            return super().forward(input, hx)  # type: ignore[misc]
        return functional_call(self, {"weight_hh": weight_hh}, (input, hx))


class _LSTMCell(_Cell, nn.LSTMCell): ...


class _GRUCell(_Cell, nn.GRUCell): ...


class _RNNCell(_Cell, nn.RNNCell): ...


# By the exact class of a layer: a subclass may do anything with its weight.
WITH_WEIGHT_ARGUMENT: dict[type[nn.Module], type[nn.Module]] = {
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

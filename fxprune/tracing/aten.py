"""The torch functions for operators of ATen: programs of `torch.export` call operators, and the rules know functions.

Most operators have the arguments of the function or method of their name. The others are here; they take the arguments
of the operator's schema.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["as_function"]


@functools.cache
def as_function(operator: Any) -> Callable[..., Any] | None:
    """A function that does the same by calls of torch functions; None for anything else than an operator of ATen."""
    if not isinstance(operator, torch._ops.OpOverload):
        return None
    namespace, _, name = operator._schema.name.partition("::")
    if namespace != "aten":
        return None
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    for owner in (torch, F, Tensor):
        if callable(found := getattr(owner, name, None)):
            return found  # type: ignore[no-any-return]
    plain = getattr(F, name.removesuffix("_"), None) if name.endswith("_") else None
    return functools.partial(plain, inplace=True) if callable(plain) else None


def _same(self: Tensor, *_: Any, **__: Any) -> Tensor:
    return self


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _to(self: Tensor, *args: Any, layout: Any = None, pin_memory: Any = None, **kwargs: Any) -> Tensor:
    return self.to(*args, **kwargs)


def _slice(self: Tensor, dim: int = 0, start: Any = None, end: Any = None, step: Any = 1) -> Tensor:
    last = 2**63 - 1
    part = slice(start, None if type(end) is int and end == last else end, step)
    return self[(slice(None),) * (dim % self.dim()) + (part,)]


def _index(self: Tensor, indices: Sequence[Any]) -> Tensor:
    return self[tuple(slice(None) if index is None else index for index in indices)]


def _convolution(
    x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int,
) -> Tensor:  # fmt: skip
    rank = weight.dim() - 2
    if transposed:
        function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
        return function(x, weight, bias, stride, padding, output_padding, groups, dilation)
    return (F.conv1d, F.conv2d, F.conv3d)[rank - 1](x, weight, bias, stride, padding, dilation, groups)


def _batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float,
    cudnn_enabled: bool = False,
) -> Tensor:  # fmt: skip
    return F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)


def _instance_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, of_input: bool, momentum: float, eps: float, _: bool
) -> Tensor:
    return F.instance_norm(x, mean, var, weight, bias, of_input, momentum, eps)


def _native_batch_norm(x: Tensor, weight: Any, bias: Any, *rest: Any) -> tuple[Any, ...]:
    *statistics, training, momentum, eps = rest
    mean, var = statistics or (None, None)
    return F.batch_norm(x, mean, var, weight, bias, training, momentum, eps), None, None


def _batch_norm_in_eval(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
) -> tuple[Any, ...]:
    return _native_batch_norm(x, weight, bias, mean, var, False, momentum, eps)


def _layer_norm(
    x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn_enable: bool = True
) -> Tensor:
    return F.layer_norm(x, tuple(shape), weight, bias, eps)


def _group_norm(
    x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn_enabled: bool = True
) -> Tensor:
    return F.group_norm(x, groups, weight, bias, eps)


def _native_group_norm(
    x: Tensor, weight: Any, bias: Any, n: int, c: int, hw: int, groups: int, eps: float
) -> tuple[Any, ...]:
    return F.group_norm(x, groups, weight, bias, eps), None, None


def _max_pool(function: Callable[..., Any], *, with_indices: bool = False) -> Callable[..., Any]:
    def max_pool(
        self: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> Any:
        return function(self, kernel, stride or None, padding, dilation, ceil_mode, return_indices=with_indices)

    return max_pool


def _avg_pool(function: Callable[..., Any]) -> Callable[..., Any]:
    def avg_pool(self: Tensor, kernel: Any, stride: Any = (), *options: Any) -> Any:
        return function(self, kernel, stride or None, *options)

    return avg_pool


def _embedding(weight: Tensor, indices: Tensor, padding_idx: int = -1, *_: Any) -> Tensor:
    return F.embedding(indices, weight, None if padding_idx < 0 else padding_idx)


def _upsample(mode: str) -> Callable[..., Any]:
    def nearest(x: Tensor, size: Any, factors: Any) -> Tensor:
        return F.interpolate(x, size, _tuple(factors), mode)

    def smooth(x: Tensor, size: Any, align_corners: bool, factors: Any) -> Tensor:
        return F.interpolate(x, size, _tuple(factors), mode, align_corners)

    return nearest if mode.startswith("nearest") else smooth


def _tuple(factors: Any) -> Any:
    return None if factors is None else tuple(factors)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, is_causal: bool = False, *,
    attn_mask: Any = None, scale: Any = None,
) -> tuple[Any, ...]:  # fmt: skip
    return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale), None


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("alias", "lift_fresh", "lift_fresh_copy"), _same),
    **dict.fromkeys(("_assert_tensor_metadata", "_assert_async", "_assert_scalar"), _nothing),
    "to": _to, "_to_copy": _to, "slice": _slice, "index": _index, "_unsafe_view": Tensor.reshape,
    "expand": lambda self, size, implicit=False: self.expand(size),
    "sym_size": lambda self, dim: self.size(dim), "sym_numel": lambda self: self.numel(),
    "split_with_sizes": torch.split,
    "constant_pad_nd": lambda self, pad, value=0.0: F.pad(self, pad, "constant", value),
    "convolution": _convolution, "embedding": _embedding,
    "batch_norm": _batch_norm, "instance_norm": _instance_norm, "layer_norm": _layer_norm, "group_norm": _group_norm,
    "_native_batch_norm_legit": _native_batch_norm, "native_batch_norm": _native_batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm_in_eval, "native_group_norm": _native_group_norm,
    "native_layer_norm": lambda *args: (_layer_norm(*args), None, None),
    "rms_norm": F.rms_norm, "dropout": F.dropout, "feature_dropout": F.dropout2d, "alpha_dropout": F.alpha_dropout,
    "_softmax": lambda self, dim, half_to_float: torch.softmax(self, dim),
    "_log_softmax": lambda self, dim, half_to_float: torch.log_softmax(self, dim),
    "_adaptive_avg_pool2d": F.adaptive_avg_pool2d, "_adaptive_avg_pool3d": F.adaptive_avg_pool3d,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    **{name: _avg_pool(getattr(F, name)) for name in ("avg_pool1d", "avg_pool2d", "avg_pool3d")},
    **{name: _max_pool(getattr(F, name)) for name in ("max_pool1d", "max_pool2d", "max_pool3d")},
    **{
        f"max_pool{n}d_with_indices": _max_pool(getattr(F, f"max_pool{n}d"), with_indices=True) for n in (2, 3)
    },
    **{f"upsample_nearest{n}d": _upsample("nearest") for n in (1, 2, 3)},
    **{f"_upsample_nearest_exact{n}d": _upsample("nearest-exact") for n in (1, 2, 3)},
    "upsample_linear1d": _upsample("linear"), "upsample_bilinear2d": _upsample("bilinear"),
    "upsample_bicubic2d": _upsample("bicubic"), "upsample_trilinear3d": _upsample("trilinear"),
}  # fmt: skip

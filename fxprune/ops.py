"""What an op is: the one table of traits, which the tracer, the rules and the passes read.

An op is known by its *name*: that of the tensor method, or of the function in `torch`, `torch.nn.functional` or
`operator`. One name stands for all spellings: `relu` for `relu_`, which writes in place, `add` for `__add__`, and `and`
for `and_`. A module is known by its class. What an op does to channels, what it costs and how it is rewritten is in
`fxprune.rules`.
"""

from __future__ import annotations

import functools
import operator
from enum import Flag, auto
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["Trait", "modules_with", "name_of_op", "names_with", "traits"]


class Trait(Flag):
    """Something that is true of an op, whatever its arguments."""

    NONE = 0
    #: The result may share memory with the first argument.
    VIEW = auto()
    #: Each entry of the result depends on the entries of the tensors at its place alone; operands broadcast.
    ELEMENTWISE = auto()
    #: The result has the shape of the first tensor, or the shape to which the tensors broadcast.
    KEEPS_SHAPE = auto()
    #: Computes one number from all entries along some dimensions.
    REDUCTION = auto()
    #: `a + b`.
    ADDITION = auto()
    #: `a - b`.
    SUBTRACTION = auto()
    #: Sums over channels against a weight or another tensor: a convolution, a product of matrices.
    CONTRACTION = auto()
    #: Computes products that are not counted as FLOPs, since their number is no formula of the sizes, or not known.
    UNCOUNTED = auto()
    #: A convolution.
    CONVOLUTION = auto()
    #: A transposed convolution: the first dimension of its weight is that of the inputs.
    TRANSPOSED = auto()
    #: A linear layer.
    LINEAR = auto()
    #: A product of matrices; the last dimension of the second one is the result's.
    MATRIX_PRODUCT = auto()
    #: Rows of a table, looked up by their numbers.
    EMBEDDING = auto()
    #: Normalises over channels, or over channels and positions, in evaluation too.
    CHANNEL_NORM = auto()
    #: A module that draws random numbers in training. The node of a function that does so has `meta["random"]`.
    RANDOM = auto()
    #: Sets entries to zero at random, in training.
    DROPOUT = auto()
    #: Reads the number of dimensions, the type or the device of a tensor, and neither its size nor its entries.
    LAYOUT = auto()
    #: Reads the entries of its first argument only, and of the others a type, a device or a size.
    READS_FIRST = auto()
    #: The same values, in other memory or of another type.
    COPY = auto()
    #: Indices are computed with it, and it gives the same result each time.
    INDEX = auto()
    #: Joins the tensors of a list, however many there are.
    JOIN = auto()


_NAMES: dict[Trait, str] = {
    Trait.VIEW: """
        view reshape transpose permute flatten unflatten squeeze unsqueeze narrow select expand expand_as view_as
        reshape_as movedim moveaxis t swapaxes swapdims chunk split split_with_sizes tensor_split unbind diagonal
        as_strided contiguous detach to type_as float double half view_as_real view_as_complex dropout requires_grad
        getitem getattr written_in_training
    """,
    Trait.ELEMENTWISE: """
        relu relu6 leaky_relu elu celu selu gelu silu mish hardswish sigmoid hardsigmoid tanh hardtanh softplus softsign
        hardshrink softshrink tanhshrink logsigmoid threshold dropout alpha_dropout abs neg exp expm1 log log1p log2
        log10 sqrt rsqrt square sin cos tan atan asin acos sinh cosh erf erfc reciprocal sign floor ceil round trunc
        frac clamp clamp_min clamp_max clip nan_to_num isnan isinf isfinite logical_not bitwise_not invert positive
        add sub mul div truediv true_divide floordiv floor_divide remainder mod fmod rsub pow rpow maximum minimum
        where lerp addcmul addcdiv atan2 hypot eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and
        bitwise_or masked_fill copysign xlogy iadd isub imul itruediv and or copy subtract multiply divide
        radd rmul rtruediv
    """,
    Trait.KEEPS_SHAPE: """
        add iadd sub isub mul imul truediv itruediv neg where clamp relu gelu silu sigmoid tanh softmax dropout
        hardswish hardtanh leaky_relu contiguous clone to float type_as detach layer_norm batch_norm group_norm rms_norm
        normalize
    """,
    Trait.REDUCTION: """
        sum mean amax amin prod std var logsumexp any all nanmean nansum norm vector_norm linalg_norm linalg_vector_norm
    """,
    Trait.ADDITION: "add iadd",
    Trait.SUBTRACTION: "sub isub",
    Trait.CONTRACTION: """
        linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d matmul mm bmm mv addmm
        baddbmm einsum scaled_dot_product_attention multi_head_attention_forward
    """,
    Trait.UNCOUNTED: """
        fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn
        fft_ifftn fft_rfftn fft_irfftn stft istft linalg_multi_dot multi_dot chain_matmul cdist inner outer ger addr
        kron
        linalg_vecdot vecdot conv_tbc matrix_exp linalg_matrix_exp matrix_power linalg_matrix_power inverse linalg_inv
        linalg_pinv pinverse linalg_solve linalg_lstsq linalg_svd svd linalg_eig linalg_eigh linalg_qr qr
        linalg_cholesky cholesky flex_attention
    """,
    Trait.CONVOLUTION: "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    Trait.TRANSPOSED: "conv_transpose1d conv_transpose2d conv_transpose3d",
    Trait.LINEAR: "linear",
    Trait.MATRIX_PRODUCT: "matmul mm bmm addmm baddbmm",
    Trait.EMBEDDING: "embedding",
    Trait.CHANNEL_NORM: "layer_norm group_norm",
    Trait.DROPOUT: "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout",
    Trait.LAYOUT: "dim ndimension element_size is_floating_point is_complex is_contiguous get_device type",
    Trait.READS_FIRST: "type_as to view_as reshape_as expand_as",
    Trait.COPY: """
        clone contiguous detach to type type_as float half double bfloat16 int long bool cpu cuda requires_grad
    """,
    Trait.INDEX: """
        to type long int cpu cuda contiguous clone detach argsort flip cat stack view reshape flatten transpose permute
        t squeeze unsqueeze arange tensor nonzero getitem invert logical_not bool
    """,
    Trait.JOIN: "cat concat concatenate stack hstack vstack row_stack dstack column_stack",
}

_MODULES: dict[Trait, tuple[type[nn.Module], ...]] = {
    Trait.VIEW: (nn.Flatten, nn.Unflatten, _DropoutNd, nn.Identity),
    Trait.ELEMENTWISE: (
        *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
        *(nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.Hardshrink, nn.Softshrink),
        *(nn.Tanhshrink, nn.LogSigmoid, nn.Threshold, nn.RReLU, nn.Identity, nn.Dropout, nn.AlphaDropout),
    ),
    Trait.KEEPS_SHAPE: (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _DropoutNd, nn.Identity),
    Trait.CONTRACTION: (nn.Linear, nn.Bilinear, _ConvNd, nn.MultiheadAttention, nn.RNNBase, nn.Embedding),
    Trait.CONVOLUTION: (_ConvNd,),
    Trait.TRANSPOSED: (_ConvTransposeNd,),
    Trait.LINEAR: (nn.Linear,),
    Trait.EMBEDDING: (nn.Embedding,),
    Trait.CHANNEL_NORM: (nn.LayerNorm, nn.GroupNorm),
    Trait.RANDOM: (_DropoutNd, nn.RReLU),
    Trait.DROPOUT: (_DropoutNd,),
}


@functools.cache
def names_with(trait: Trait) -> tuple[str, ...]:
    """The names of the ops that have a trait.

    Examples:
        >>> names_with(Trait.ADDITION)
        ('add', 'iadd')
    """
    return tuple(_NAMES.get(trait, "").split())


def modules_with(trait: Trait) -> tuple[type[nn.Module], ...]:
    """The classes of modules that have a trait, and so have their subclasses."""
    return _MODULES.get(trait, ())


def name_of_op(target: Any) -> str:
    """The name of the op that is the target of a node, without the underscores of its spelling; empty without a name.

    Examples:
        >>> name_of_op("relu_"), name_of_op(operator.add), name_of_op("__add__"), name_of_op(operator.and_)
        ('relu', 'add', 'add', 'and')
    """
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    return name.strip("_") if name.startswith("__") else str(name).removesuffix("_")


def traits(node: fx.Node, module: nn.Module | None = None) -> Trait:
    """The traits of the op that a node calls.

    Args:
        node: a node of a traced model.
        module: the module that the node calls, if it calls one.

    Examples:
        >>> graph = fx.Graph()
        >>> Trait.VIEW in traits(graph.call_method("view", (graph.placeholder("x"), -1)))
        True
    """
    if node.op == "call_module":
        kind: Any = type(module)
        return _of_class(kind)
    return _of_name(name_of_op(node.target)) if node.op in ("call_function", "call_method") else Trait.NONE


@functools.cache
def _of_name(name: str) -> Trait:
    return functools.reduce(operator.or_, (trait for trait in _NAMES if name in names_with(trait)), Trait.NONE)


# Bounded, since models make classes too.
@functools.lru_cache(maxsize=1024)
def _of_class(kind: Any) -> Trait:
    return functools.reduce(operator.or_, (t for t, kinds in _MODULES.items() if issubclass(kind, kinds)), Trait.NONE)

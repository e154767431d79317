"""The table of traits: names have one spelling, and what the table says of an op is true."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.ops import Trait, modules_with, name_of_op, names_with, traits
from fxprune.running import mode_blocks

SPACES = (Tensor, torch, F, operator, builtins, mode_blocks)
X, Y, Z = (torch.rand(3, 4, generator=torch.Generator().manual_seed(k)) * 0.8 + 0.1 for k in range(3))
MASK = torch.rand(3, 4) > 0.5
# Arguments of ops that do not work with one or two tensors of numbers or of truths.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "clamp": (X, 0.3, 0.5), "clamp_max": (X, 0.5), "clamp_min": (X, 0.3),
    "clip": (X, 0.3, 0.5), "addcdiv": (X, Y, Z), "addcmul": (X, Y, Z), "lerp": (X, Y, Z), "threshold": (X, 0.3, 9.0),
    "masked_fill": (X, MASK, 0.5), "where": (MASK, X, Y), "bitwise_not": (MASK,),
    "batch_norm": (X, torch.zeros(4), torch.ones(4)), "layer_norm": (X, (4,)), "rms_norm": (X, (4,)),
    "group_norm": (X, 2), "softmax": (X, -1), "to": (X, torch.float64), "type": (X, torch.float64),
    "reshape": (X, (2, 6)), "view": (X, (2, 6)), "transpose": (X, 0, 1), "permute": (X, (1, 0)), "squeeze": (X, 0),
    "unflatten": (X, 1, (2, 2)), "unsqueeze": (X, 0), "narrow": (X, 0, 1, 2), "select": (X, 0, 1),
    "expand": (X[:1], (5, 4)), "expand_as": (X[:1], X), "movedim": (X, 0, 1), "moveaxis": (X, 0, 1),
    "swapaxes": (X, 0, 1), "swapdims": (X, 0, 1), "chunk": (X, 2), "split": (X, 2), "split_with_sizes": (X, [1, 2]),
    "tensor_split": (X, 2), "view_as_real": (torch.complex(X, Y),), "view_as_complex": (torch.stack([X, Y], -1),),
    "as_strided": (X, (2, 2), (1, 1)), "requires_grad": (X.clone(),), "getitem": (X, 0), "getattr": (X, "T"),
    "rand": (9,), "randn": (9,), "randint": (99, (9,)), "randperm": (99,), "randint_like": (X, 99),
    "multinomial": (X, 2), "normal": (X, Y), "exponential": (X.clone(),), "random": (X.clone(),),
    "uniform": (X.clone(),), "gumbel_softmax": (X,), "rrelu": (X - 0.5, 0.1, 0.9, True),
    "scaled_dot_product_attention": (X, X, X, None, 0.5), "dropout": (X, 0.5, False), "alpha_dropout": (X, 0.5, False),
    "written_in_training": (X, True),
}  # fmt: skip


def calls(name: str) -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """The functions of a name, with arguments that they take."""
    spellings = (name, f"{name}_", f"__{name}__")
    functions = [getattr(space, spelling, None) for spelling in spellings for space in SPACES]
    choices = [ARGUMENTS[name]] if name in ARGUMENTS else [(X,), (X, Y), (MASK,), (MASK, MASK)]
    for function in filter(callable, functions):
        for arguments in choices:
            try:
                result = function(*(x.clone() if isinstance(x, Tensor) else x for x in arguments))
            except (TypeError, RuntimeError, AttributeError, ValueError):
                continue
            if result is not NotImplemented:
                yield function, arguments


def call(name: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    found = next(calls(name), None)
    assert found is not None, f"{name} is no op, or takes other arguments"
    return found


@pytest.mark.parametrize("trait", list(Trait))
def test_every_trait_belongs_to_an_op_and_names_have_one_spelling(trait: Trait) -> None:
    assert names_with(trait) or modules_with(trait)
    assert all(name_of_op(name) == name for name in names_with(trait))
    assert len(set(names_with(trait))) == len(names_with(trait))


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("relu_", "relu"), (torch.relu_, "relu"), (F.relu, "relu"), ("__add__", "add"), (operator.iadd, "iadd"),
        (operator.and_, "and"), ("__rsub__", "rsub"), ("_weight_norm", "_weight_norm"), (torch.Tensor.mul_, "mul"),
        (getattr, "getattr"), (object(), ""),
    ],
)  # fmt: skip
def test_all_spellings_of_an_op_have_one_name(target: object, name: str) -> None:
    assert name_of_op(target) == name


@pytest.mark.parametrize("name", names_with(Trait.ELEMENTWISE))
def test_an_elementwise_op_computes_each_entry_from_those_in_its_place(name: str) -> None:
    function, arguments = call(name)
    changed = [x.clone() if isinstance(x, Tensor) else x for x in arguments]
    for x in changed:
        if isinstance(x, Tensor):
            x[1, 2] = ~x[1, 2] if x.dtype is torch.bool else x[1, 2] * 0.5
    before, after = function(*(x.clone() if isinstance(x, Tensor) else x for x in arguments)), function(*changed)
    assert before.shape == X.shape
    others = torch.ones(3, 4, dtype=torch.bool)
    others[1, 2] = False
    assert torch.equal(before[others].nan_to_num(), after[others].nan_to_num())


@pytest.mark.parametrize("name", names_with(Trait.KEEPS_SHAPE))
def test_an_op_that_keeps_the_shape_keeps_it(name: str) -> None:
    function, arguments = call(name)
    assert function(*arguments).shape == X.shape


@pytest.mark.parametrize("name", names_with(Trait.VIEW))
def test_a_view_may_share_the_memory_of_its_first_argument(name: str) -> None:
    if name in ("float", "double", "half", "to", "type_as", "dropout"):
        arguments = {"to": (X, X.dtype), "type_as": (X, X), "dropout": (X, 0.5, False)}.get(name, (X.double(),))
        arguments = (X.half(),) if name == "half" else (X,) if name == "float" else arguments
        function = getattr(F if name == "dropout" else Tensor, name)
    else:
        function, arguments = call(name)
    result = function(*arguments)
    first = result[0] if isinstance(result, (tuple, list)) else result
    assert first.untyped_storage().data_ptr() == arguments[0].untyped_storage().data_ptr()


@pytest.mark.parametrize("name", names_with(Trait.LAYOUT))
def test_what_reads_the_layout_reads_neither_size_nor_entries(name: str) -> None:
    assert getattr(X, name)() == getattr(torch.zeros(7, 9), name)()


@pytest.mark.parametrize("name", names_with(Trait.READS_FIRST))
def test_what_reads_the_first_argument_only_does_not_read_the_entries_of_the_second(name: str) -> None:
    read, first = getattr(Tensor, name), X[:1] if name == "expand_as" else X
    assert torch.equal(read(first, X), read(first, torch.full_like(X, torch.nan)))


@pytest.mark.parametrize("name", [name for name in names_with(Trait.COPY) if name not in ("cuda", "requires_grad")])
def test_a_copy_has_the_same_values(name: str) -> None:
    whole = torch.arange(2.0)
    arguments = {"to": (torch.int64,), "type": (torch.int64,), "type_as": (whole.half(),)}.get(name, ())
    assert torch.equal(getattr(whole, name)(*arguments).float(), whole)


def test_a_module_has_the_traits_of_its_class_and_a_function_those_of_its_name() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    assert traits(x) is Trait.NONE
    assert Trait.ELEMENTWISE in traits(graph.call_method("sigmoid_", (x,)))
    assert Trait.ADDITION in traits(graph.call_function(operator.iadd, (x, x)))
    assert Trait.CONTRACTION | Trait.CONVOLUTION in traits(graph.call_module("a", (x,)), nn.Conv2d(3, 3, 1))
    assert Trait.TRANSPOSED not in traits(graph.call_module("a", (x,)), nn.Conv2d(3, 3, 1))
    assert Trait.TRANSPOSED in traits(graph.call_module("a", (x,)), nn.ConvTranspose1d(3, 3, 1))
    assert Trait.RANDOM | Trait.DROPOUT in traits(graph.call_module("a", (x,)), nn.Dropout2d())
    assert traits(graph.call_module("a", (x,)), nn.Upsample()) is Trait.NONE


def test_elementwise_modules_are_elementwise() -> None:
    for kind in modules_with(Trait.ELEMENTWISE):
        made = (kind(0.3, 9.0) if kind is nn.Threshold else kind()).eval()
        assert torch.allclose(made(X)[:, 1:3], made(X[:, 1:3]))

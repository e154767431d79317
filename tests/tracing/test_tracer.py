"""The traced model is the model: in eval, in training, at other sizes, after copying and pickling."""

from __future__ import annotations

import copy
import functools
import importlib
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from invariant import check_invariant, net
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils.checkpoint import CheckpointFunction, checkpoint

from fxprune.errors import FxpruneError, FxpruneWarning
from fxprune.running import trees
from fxprune.tracing.checks import check_as_traced
from fxprune.tracing.notes import trace_notes
from fxprune.tracing.tracer import trace


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def make(name: str, **settings: Any) -> nn.Module:
    model: nn.Module = timm.create_model(name, **settings).eval()
    for module in model.modules():
        # Otherwise layer scales of 1e-6 and zero-initialised norms would hide most of the model.
        for parameter in module.parameters(recurse=False):
            nn.init.normal_(parameter, 0.5 if parameter.ndim == 1 else 0.0, 0.1)
    return model


def assert_same(model: nn.Module, traced: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Bit for bit: outputs in eval, outputs and buffers after one step of training."""
    assert list(traced.state_dict()) == list(model.state_dict())
    model, traced = copy.deepcopy(model), copy.deepcopy(traced)
    for training in (False, True):
        outputs = []
        for candidate in (model, traced):
            candidate.train(training)
            torch.manual_seed(1)
            with torch.no_grad():
                outputs.append(candidate(*args, **kwargs))
        torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=0, equal_nan=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, traced.state_dict()[name]), name


def targets(traced: fx.GraphModule, op: str = "call_function") -> list[Any]:
    return [node.target for node in traced.graph.nodes if node.op == op]


def test_a_tensor_of_unknown_origin_is_an_error_and_not_a_constant() -> None:
    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():
                y = x + 1
            return x * y

    with pytest.raises(FxpruneError, match="does not show to tracers"):
        trace(Hidden(), torch.ones(2))


MODELS: list[tuple[str, dict[str, Any], int]] = [
    ("test_resnet", {"drop_path_rate": 0.3, "drop_rate": 0.2}, 64),
    ("test_efficientnet", {"drop_path_rate": 0.3, "drop_rate": 0.2}, 64),
    ("test_vit", {"drop_rate": 0.1, "proj_drop_rate": 0.1, "attn_drop_rate": 0.2, "drop_path_rate": 0.2}, 160),
    ("test_convnext", {"drop_path_rate": 0.2}, 64),
    ("test_byobnet", {"drop_path_rate": 0.2}, 64),
    ("regnety_002", {"drop_path_rate": 0.2}, 32),
    ("levit_128s", {"drop_path_rate": 0.2, "depth": (1, 1, 1)}, 224),
    ("ghostnet_050", {"drop_rate": 0.2}, 32),
    ("densenet121", {"drop_rate": 0.2, "block_config": (2, 2), "growth_rate": 8}, 64),
    ("mobilenetv3_small_050", {}, 64),
]


@pytest.mark.parametrize(("name", "settings", "size"), MODELS, ids=[name for name, _, _ in MODELS])
def test_a_traced_model_is_the_model_in_eval_and_in_training(name: str, settings: dict[str, Any], size: int) -> None:
    model = make(name, **settings)
    traced = trace(model, torch.randn(1, 3, size, size))
    assert_same(model, traced, torch.randn(3, 3, size, size))
    assert not any("training" in note for note in trace_notes(traced).remarks)


def test_swin_is_the_same_at_another_batch_size() -> None:
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, depths=(2, 2), num_heads=(2, 4), embed_dim=16, window_size=7,
        drop_path_rate=0.2, attn_drop_rate=0.1, proj_drop_rate=0.1,
    ).eval()  # fmt: skip
    assert_same(model, trace(model, torch.randn(1, 3, 56, 56)), torch.randn(2, 3, 56, 56))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "mobilenetv3_small_050"])
def test_other_resolutions_work_where_they_do_in_the_model(name: str) -> None:
    model = make(name)
    assert_same(model, trace(model, torch.randn(1, 3, 64, 64)), torch.randn(2, 3, 96, 80))


def test_same_padding_is_computed_from_the_size() -> None:
    model = make("tf_mobilenetv3_small_minimal_100")
    assert_same(model, trace(model, torch.randn(1, 3, 64, 64)), torch.randn(2, 3, 75, 83))


class Sizes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        rows = torch.arange(h, device=x.device, dtype=x.dtype)
        grid = torch.stack(torch.meshgrid(rows, torch.linspace(-1, 1, w), indexing="ij"))
        mask = torch.zeros(h, w) + torch.eye(max(h, w))[:h, :w] * torch.full((h, 1), 2.0)
        side = int(math.sqrt(h * w))
        assert all(isinstance(size, int) for size in x.shape)
        assert type(x) is Tensor
        assert x.ndim == len(x.shape) == 4
        scaled = functional.interpolate(x * (side / (c**0.5)), size=(h // 2 + 1, round(w / 2)))
        padded = functional.pad(scaled, (0, w - scaled.size(-1), 0, h - scaled.shape[2]))
        return padded.view(b, -1).mean(1) + x.reshape(b, c, h * w).sum((1, 2)) + (grid.sum(0) + mask).sum()


def test_sizes_factories_and_arithmetic_on_sizes_are_computed_at_run_time() -> None:
    traced = trace(Sizes(), torch.randn(2, 4, 6, 8))
    assert_same(Sizes(), traced, torch.randn(3, 4, 9, 7))
    assert {torch.arange, torch.linspace, torch.eye, torch.full, torch.zeros} <= set(targets(traced))


class Shapes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        assert isinstance(shape, torch.Size)
        assert isinstance(x.size()[1:], tuple)
        assert str(shape) == f"torch.Size({[int(size) for size in shape]})"
        assert shape == torch.Size(shape)
        assert torch.Size([*shape]) == shape
        assert x[0, 0, 0, 0].shape.numel() == 1
        flat = x.view(-1, shape[1:].numel()) / shape.numel()
        return flat.sum(1) * (shape[:1] + shape[2:]).numel() / len(x) + x.new_zeros(shape).flatten(1).sum(1)


def test_lengths_and_numbers_of_elements_are_computed_at_run_time() -> None:
    traced = trace(Shapes(), torch.randn(2, 4, 6, 8))
    assert_same(Shapes(), traced, torch.randn(3, 4, 9, 7))


def test_the_dtype_and_the_device_are_those_of_the_tensor_they_were_read_from() -> None:
    traced = trace(Sizes(), torch.randn(2, 4, 6, 8))
    assert "meta" not in traced.code
    arange = next(node for node in traced.graph.nodes if node.target is torch.arange)
    assert arange.kwargs["dtype"].args[1] == "dtype"
    assert arange.kwargs["device"].args[1] == "device"


def types_of_python(self: Any, x: Tensor) -> Tensor:
    doubles = torch.ones(2, dtype=float) + x.to(float)  # type: ignore[arg-type, call-overload]
    return doubles * torch.ones(2, dtype=int) * torch.ones(2, dtype=complex)  # type: ignore[call-overload, no-any-return]


def test_types_of_python_are_those_that_torch_takes_them_for() -> None:
    model, x = net(types_of_python), torch.randn(2)
    traced = trace(model, x)
    assert traced(x).dtype is model(x).dtype is torch.complex128
    assert torch.float64 in [node.kwargs.get("dtype") for node in traced.graph.nodes]


def by_names_of_types(self: Any, x: Tensor) -> Tensor:
    assert x.type() == "torch.FloatTensor"
    ones = torch.ones(len(x)).type(x.type()) + (x > 0).type(torch.FloatTensor).sum((1, 2))  # type: ignore[arg-type]
    return ones.type("torch.DoubleTensor") + (x.sum((1, 2)) if x.type().endswith("FloatTensor") else x[:, 0, 0])


def test_names_of_types_are_those_of_the_device_that_the_model_is_on() -> None:
    model = net(by_names_of_types)
    assert_same(model, trace(model, torch.randn(2, 3, 4)), torch.randn(5, 3, 4))


def test_a_type_that_was_read_by_name_is_that_of_the_tensor() -> None:
    traced = trace(net(lambda self, x: (x > 0).type(x.type())), torch.randn(2))
    assert traced(torch.randn(2).double()).dtype is torch.float64


def of_new_tensors(self: Any, x: Tensor) -> Tensor:
    filled = x.new(x.shape).fill_(2) + x.new(x.size()).zero_() + x.new(len(x), 1, 1).fill_(3) + x.new(1).fill_(4)
    return filled + x.new([5.0]) + x.new((6.0,)) + x.new(size=x.shape[:1]).zero_().view(-1, 1, 1) + x.new().sum()


def test_new_takes_sizes_and_entries() -> None:
    model = net(of_new_tensors)
    assert_same(model, trace(model, torch.randn(2, 3, 4)), torch.randn(5, 6, 4))


def test_the_model_is_left_as_it_was() -> None:
    model = make("levit_128s", depth=(1, 1, 1)).train()
    model.get_submodule("stages.0").eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    dictionaries = {name: set(vars(module)) for name, module in model.named_modules()}
    state = torch.get_rng_state()
    traced = trace(model, torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: set(vars(module)) for name, module in model.named_modules()} == dictionaries
    assert all(not getattr(module, "attention_bias_cache", None) for module in model.modules())
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert before[name][0] == id(tensor)
        assert torch.equal(before[name][1], tensor)
    assert all(module.training == modes[name] for name, module in traced.named_modules() if name in modes)
    assert nn.Module.__call__.__module__ == "torch.nn.modules.module"
    assert "training" not in vars(nn.Module)


def test_copy_false_shares_the_tensors_but_not_the_modules() -> None:
    model = make("test_resnet")
    shared, copied = trace(model, torch.randn(1, 3, 64, 64), copy=False), trace(model, torch.randn(1, 3, 64, 64))
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert shared.state_dict(keep_vars=True)[name] is tensor
        assert copied.state_dict(keep_vars=True)[name] is not tensor
    assert not set(map(id, shared.modules())) & set(map(id, model.modules()))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_copies_and_pickles_are_complete(name: str) -> None:
    model = make(name, drop_rate=0.1)
    size = model.default_cfg["input_size"]  # type: ignore[index]
    traced = trace(model, torch.randn(1, *size))
    for twin in (copy.deepcopy(traced), pickle.loads(pickle.dumps(traced)), copy.deepcopy(copy.deepcopy(traced))):
        assert_same(model, twin, torch.randn(2, *size))
        assert [node.name for node in twin.graph.nodes] == [node.name for node in traced.graph.nodes]
        assert all("value" in node.meta and "module" in node.meta for node in twin.graph.nodes)
        assert twin.meta.keys() == traced.meta.keys()
        assert not set(map(id, twin.parameters())) & set(map(id, traced.parameters()))


class Constants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.table = torch.arange(4.0)
        self.register_buffer("hidden", torch.ones(4), persistent=False)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.get_buffer("hidden")
        if hidden.sum() > 3 and self.table[1].item() == 1.0:
            x = x + 1
        return functional.linear(x, self.linear.weight) + self.table + hidden + torch.tensor([1.0, 2.0, 3.0, 4.0])


def test_constants_add_no_keys_and_are_evaluated_where_the_code_asks_for_them() -> None:
    model = Constants()
    traced = trace(model, torch.randn(2, 4))
    for twin in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(copy.deepcopy(traced)))):
        assert_same(model, twin, torch.randn(3, 4))


@dataclass
class Answer:
    mean: Tensor
    parts: tuple[Tensor, ...]


class Structured(nn.Module):
    def forward(self, x: Tensor, *, others: dict[str, Tensor], scale: float = 2.0, flag: bool = False) -> Any:
        total = x + others["a"] * scale
        if flag:
            total = -total
        return {"total": total, "answer": Answer(total.mean(), total.unbind(0))}


def test_keyword_inputs_and_structured_outputs() -> None:
    inputs = {"x": torch.randn(2, 3), "others": {"a": torch.randn(2, 3)}}
    traced = trace(Structured(), inputs)
    new = {"x": torch.randn(2, 3), "others": {"a": torch.randn(2, 3)}}
    expected, found = Structured()(**new), traced(**new)
    assert torch.equal(found["total"], expected["total"])
    assert isinstance(found["answer"], Answer)
    assert torch.equal(found["answer"].parts[1], expected["answer"].parts[1])
    assert trace_notes(traced).example_inputs == ((), inputs)


class Positional(nn.Module):
    def forward(self, first: Tensor, *tensors: Tensor) -> Tensor:
        for tensor in tensors:
            first = first * tensor
        return first


def test_variadic_arguments() -> None:
    traced = trace(Positional(), (torch.ones(2), torch.ones(2)))
    x, y = torch.randn(2), torch.randn(2)
    assert torch.equal(traced(x, y), x * y)


class Modes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.dropout(self.inner(x), 0.5, self.training)
        q = x.view(1, 1, -1, 4)
        x = functional.scaled_dot_product_attention(q, q, q, dropout_p=0.5 if self.training else 0.0)
        return functional.dropout2d(x, p=0.5, training=self.training) * (3.0 if self.training else 1.0)


def test_what_depends_on_the_mode_follows_the_mode() -> None:
    traced = trace(Modes(), torch.randn(5, 4))
    assert isinstance(traced.functional_dropout, nn.Dropout)
    assert trace_notes(traced).remarks == ()
    model = Modes()
    assert_same(model, trace(model, torch.randn(5, 4)), torch.randn(6, 4))


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, 1:] = x[:, :-1]
        y[..., 0].add_(1)
        z = x * 2
        z.relu_()
        torch.add(y, 1, out=y)
        z += 1
        return y + z


def test_changes_in_place_are_kept() -> None:
    traced = trace(InPlace(), torch.randn(2, 4))
    assert_same(InPlace(), traced, torch.randn(3, 4))


class Sharing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.tied(self.again(self.first(x)))
        return result


def test_shared_modules_and_tied_weights_stay_so() -> None:
    model = Sharing()
    traced = trace(model, torch.randn(2, 4))
    assert_same(model, traced, torch.randn(3, 4))
    assert traced.first is traced.again
    assert traced.tied.weight is traced.first.weight  # type: ignore[union-attr]
    assert copy.deepcopy(traced).tied.weight is not traced.first.weight  # type: ignore[union-attr]


def test_the_graph_is_tidy() -> None:
    traced = trace(make("test_vit"), torch.randn(1, 3, 160, 160))
    assert not any(isinstance(module, nn.Identity) for module in traced.modules())
    assert all(node.users or node.op == "output" or node.target is check_as_traced for node in traced.graph.nodes)
    traced.graph.lint()


def test_every_node_has_its_value_on_the_meta_device_and_its_module() -> None:
    traced = trace(make("test_resnet"), torch.randn(2, 3, 64, 64))
    for node in traced.graph.nodes:
        if isinstance(node.meta["value"], Tensor):
            assert node.meta["value"].is_meta
    conv = next(node for node in traced.graph.nodes if node.target == "conv1.0" or node.target == "conv1")
    assert conv.meta["value"].shape[0] == 2
    assert traced.graph.output_node().meta["value"].shape == (2, 1000)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Branch()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block(x) + 1
        return result


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


def test_control_flow_on_the_input_says_where_and_what_to_do() -> None:
    with pytest.raises(FxpruneError, match=r"`block` \(Branch\).*test_tracer\.py:\d+.*if x\.sum\(\) > 0.*leaves="):
        trace(Branching(), torch.randn(2, 3))
    traced = trace(Branching(), torch.randn(2, 3), leaves=("block",))
    assert_same(Branching(), traced, torch.randn(2, 3))
    assert_same(Branching(), trace(Branching(), torch.randn(2, 3), leaves=(Branch,)), -torch.ones(2, 3))


class Selecting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]


def test_sizes_that_depend_on_the_values_of_the_input_are_an_error_that_says_so() -> None:
    with pytest.raises(FxpruneError, match=r"size of what `getitem` gives depends on the values.*backbone"):
        trace(Selecting(), torch.randn(2, 3))


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.activation = torch.jit.script(swish)
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(self.activation(x))
        return result


def swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def test_a_scripted_function_that_a_module_holds_is_traced_though_it_cannot_be_copied() -> None:
    model, x = Scripted(), torch.randn(2, 3)
    assert torch.equal(trace(model, x)(x), model(x))


class CausalByValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], device=x.device).tril()
        return x * 2 if bool((mask == mask.tril()).all()) else x


def test_control_flow_on_what_only_the_sizes_of_the_input_tell_is_checked() -> None:
    traced = trace(CausalByValue(), torch.randn(2, 3))
    assert_same(CausalByValue(), traced, torch.randn(2, 5))
    assert any("Loops and branches that follow sizes" in note for note in trace_notes(traced).remarks)


class PaddedByTensors(nn.Module):
    """Computes its padding with buffers, as audio codecs do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 4, 2)
        self.register_buffer("kernel", torch.tensor(4))
        self.register_buffer("stride", torch.tensor(2))

    def forward(self, x: Tensor) -> Tensor:
        frames = torch.ceil((x.shape[-1] - self.kernel) / self.stride + 1).to(torch.int64) - 1
        missing = frames * self.stride + self.kernel - x.shape[-1]
        return self.conv(functional.pad(x, (self.kernel - self.stride, missing)))


def test_whole_numbers_in_tensors_are_computed_by_the_graph_where_torch_takes_numbers() -> None:
    model = PaddedByTensors()
    traced = trace(model, torch.randn(2, 3, 33))
    for length in (33, 34, 35, 50):
        assert_same(model, traced, torch.randn(2, 3, length))


HELPERS = """
import functools, torch

@functools.lru_cache(None)
def positions(length):
    return torch.arange(length)[:, None] / length

def joined(windows, height, width):
    batch = int(windows.shape[0] / (height * width / 2 / 2))
    return windows.view(batch, height * width, -1)
"""
MODEL = """
import helpers_of_a_user, torch
from helpers_of_a_user import joined

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(8, 6)

    def forward(self, x):
        batch, height, width, _ = x.shape
        windows = self.a(x).reshape(-1, 2, 2, 6)
        return joined(windows, height, width) + helpers_of_a_user.positions(height * width)
"""


def test_helpers_in_files_of_their_own_are_traced_and_keep_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they cache must be none of what is made on the meta device, nor may `int` make a batch a constant."""
    (tmp_path / "helpers_of_a_user.py").write_text(HELPERS)
    (tmp_path / "model_of_a_user.py").write_text(MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = importlib.import_module("model_of_a_user").Net()
    traced = trace(model, torch.randn(2, 4, 4, 8))
    assert_same(model, traced, torch.randn(3, 4, 4, 8))
    assert_same(model, trace(model, torch.randn(2, 4, 4, 8)), torch.randn(5, 4, 4, 8))


def test_what_was_traced_can_be_traced_again() -> None:
    """The second time its containers are bare modules, some with nothing in them but a pooling layer."""
    model = make("resnet18")
    once = trace(model, torch.randn(1, 3, 64, 64))
    assert_same(model, trace(once, torch.randn(1, 3, 64, 64)), torch.randn(1, 3, 64, 64))


def test_inputs_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(FxpruneError, match="do not fit"):
        trace(Branching(), (torch.randn(2), torch.randn(2)))
    with pytest.raises(FxpruneError, match="conv1"):
        trace(make("test_resnet"), torch.randn(1, 7, 64, 64))


def test_auxiliary_heads_keep_their_keys_and_their_loss_is_warned_of() -> None:
    model = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False).eval()
    x = torch.randn(1, 3, 64, 64)
    with pytest.warns(FxpruneWarning, match="Only the code of eval is in the graph for `GoogLeNet`"):
        traced = trace(model, x)
    assert list(traced.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        assert torch.equal(traced(x), model(x))
    (note,) = trace_notes(traced).remarks
    assert "further outputs) is missing when the result is trained" in note


class Averaging(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.average.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return x + torch.randn_like(x) if self.training else x - self.average


def noisy(self: Any, x: Tensor) -> Tensor:
    x = self.layer(x)
    return x + torch.randn_like(x) if self.training else x


def needs_targets(self: Any, x: Tensor) -> Tensor:
    if self.training:
        raise ValueError("no targets")
    return self.layer(x)  # type: ignore[no-any-return]


class Noisy(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + torch.randn_like(self.weight) if self.training else self.weight
        return nn.functional.linear(x, weight)


class NoisyProduct(Noisy):
    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight + torch.randn_like(self.weight) if self.training else self.weight).T


@pytest.mark.parametrize("layer", [Noisy, NoisyProduct])
def test_a_layer_of_weights_of_its_own_that_runs_other_code_in_training_is_pruned_with_a_warning(layer: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 8), layer(8, 6), layer(6, 2))
    with pytest.warns(FxpruneWarning, match="in the graph for `1`, `2`: other code runs there in training"):
        check_invariant(model, torch.randn(3, 4), 14)


def test_code_for_training_alone_is_kept_in_a_module_of_its_own_and_warned_of_elsewhere() -> None:
    kept = nn.Sequential(nn.Linear(8, 8), Averaging(), nn.Linear(8, 3))
    traced = trace(kept, torch.randn(4, 8))
    assert trace_notes(traced).remarks == ()
    assert_same(kept, traced, torch.randn(5, 8))
    for forward, said in ((noisy, "for `Net`: other code runs there"), (needs_targets, "cannot be traced.*no targets")):
        with pytest.warns(FxpruneWarning, match=said):
            trace(net(forward, layer=nn.Linear(8, 8)), torch.randn(4, 8))


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * 3 * ctx.saved_tensors[0]


class CustomGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            detached = self.scale * 2
        return Square.apply(x * self.scale) * detached  # type: ignore[no-any-return]


def test_custom_gradients_and_no_grad_regions_are_those_of_the_model() -> None:
    model, x = CustomGradient(), torch.randn(2, 3)
    traced = trace(model, x)
    for candidate in (model, traced, copy.deepcopy(traced)):
        candidate.zero_grad()
        candidate(x).sum().backward()
        gradient = candidate.scale.grad
        assert isinstance(gradient, Tensor)
        assert torch.equal(gradient, model.scale.grad)  # type: ignore[arg-type]
    with torch.no_grad():
        traced(x)
        assert not torch.is_grad_enabled()


@functools.lru_cache
def _table(size: int) -> Tensor:
    return torch.arange(size).float()


def _by_decorator(function: Any) -> Any:
    cached = functools.lru_cache(function)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return cached(*args)

    call.cache_info = cached.cache_info  # type: ignore[attr-defined]
    return call


@_by_decorator
def _other_table(size: int) -> Tensor:
    return torch.arange(size) / 3


class Cached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + _table(x.shape[1]) + _other_table(x.shape[1]) + self.method(x.shape[1]) + self.static(x.shape[1])

    @functools.lru_cache  # noqa: B019
    def method(self, size: int) -> Tensor:
        return torch.arange(size) / 5

    @staticmethod
    @functools.lru_cache
    def static(size: int) -> Tensor:
        return torch.arange(size) / 7


CACHES = (_table, _other_table, Cached.method, Cached.static)


def test_caches_of_the_model_are_neither_read_nor_filled_by_the_trace() -> None:
    model = Cached()
    model(torch.randn(2, 3))
    before = [cache.cache_info() for cache in CACHES]
    traced = trace(model, torch.randn(2, 3))
    assert [cache.cache_info() for cache in CACHES] == before
    assert not list(traced.buffers())
    assert_same(model, traced, torch.randn(2, 5))


class AsksWhetherItIsCompiled(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and (0.0 in mask[[-1]] or mask.all()):
            return x.relu() if mask.all() else (x * mask[:, None]).relu()
        return (x * mask[:, None]).relu()


def test_a_way_that_a_model_has_for_export_is_taken_where_the_other_depends_on_values() -> None:
    x, masks = torch.randn(2, 3), (torch.ones(2), torch.tensor([1.0, 0.0]))
    traced = trace(AsksWhetherItIsCompiled(), (x, masks[0]))
    for given in masks:
        assert torch.equal(traced(x, given), AsksWhetherItIsCompiled()(x, given))
    assert list(trace_notes(traced).remarks) == [
        "Traced as for torch.export: otherwise the model's control flow depends on the values of its input."
    ]
    assert not torch.compiler.is_compiling()


class UpToTheLongest(nn.Module):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        longest = lengths.max().item()
        return x[:, :longest] * (torch.arange(longest) < lengths[:, None])


def test_a_length_that_the_input_gives_is_computed_by_the_graph() -> None:
    x = torch.randn(2, 5)
    traced = trace(UpToTheLongest(), (x, torch.tensor([2, 4])))
    for lengths in (torch.tensor([2, 4]), torch.tensor([3, 1])):
        assert torch.equal(traced(x, lengths), UpToTheLongest()(x, lengths))
    (note,) = trace_notes(traced).remarks
    assert note.endswith("control flow that depends on it is that of the example input.")


class SoftmaxWithoutMeta(torch.autograd.Function):
    """Mixes devices where the model is not on the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.masked_fill(torch.zeros(x.shape, dtype=torch.bool, device="cpu"), 0.0).softmax(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def test_a_function_that_does_not_run_on_the_meta_device_is_run_on_the_example() -> None:
    model = net(lambda self, x: SoftmaxWithoutMeta.apply(self.a(x)) * 2, a=nn.Linear(3, 4))
    assert_same(model, trace(model, torch.randn(2, 3)), torch.randn(5, 3))


def rounded_by_numpy(self: Any, x: Tensor) -> Tensor:
    missing = int(np.ceil(x.shape[-1] / 8) * 8) - x.shape[-1]
    half = np.floor(x.shape[-1] / 2).astype(int)
    padded = functional.pad(x, (0, missing))[..., : half + np.trunc(x.shape[1] / 2).astype("int64")]
    chunks = x.chunk(int(np.ceil(x.shape[0] / 128)), 0)
    return padded * np.rint(x.shape[1] * 0.4) + sum(chunk.mean() for chunk in chunks)


def test_sizes_that_numpy_rounds_are_rounded_at_run_time() -> None:
    model = net(rounded_by_numpy)
    assert_same(model, trace(model, torch.randn(2, 3, 13)), torch.randn(4, 7, 18))


def test_numbers_of_numpy_are_numbers() -> None:
    model = net(lambda self, x: self.a(x) * np.float64(0.5) + np.float32(2), a=nn.Linear(3, 4))
    assert_same(model, trace(model, torch.randn(2, 3)), torch.randn(5, 3))


class OwnTrain(nn.Module):
    def __init__(self, freezes: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.freezes = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), freezes

    def train(self, mode: bool = True) -> OwnTrain:
        super().train(mode)
        if self.freezes:
            self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


@pytest.mark.parametrize("freezes", [True, False])
def test_a_train_that_leaves_modules_in_eval_is_noted(freezes: bool) -> None:
    traced = trace(nn.Sequential(OwnTrain(freezes)), torch.randn(2, 3, 4, 4))
    expected = "`train()` of `0` leaves a part as it is; the traced model has the usual one."
    assert list(trace_notes(traced).remarks) == ([expected] if freezes else [])


class Memory:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@dataclass
class ScoresAndMemory:
    scores: Tensor
    memory: Memory | None = None


class Remembers(nn.Module):
    def forward(self, x: Tensor, container: Any = ScoresAndMemory) -> Any:
        return container(scores=x.relu(), memory=Memory(x + 1))


@pytest.mark.parametrize("container", [ScoresAndMemory, dict])
def test_an_object_among_what_the_model_returns_by_name_is_left_out_and_noted(container: Any) -> None:
    x = torch.randn(2, 3)
    model = Remembers()
    model.forward = functools.partial(model.forward, container=container)  # type: ignore[method-assign]
    traced = trace(model, x)
    assert trees.tensors(traced(x))[0].equal(x.relu())
    (note,) = trace_notes(traced).remarks
    assert note.startswith("`memory` is left out of what the model returns: an object of type `")
    assert len(traced.graph.nodes) == 3 + (container is ScoresAndMemory)


def test_a_model_without_a_way_for_export_is_refused_for_its_own_reason() -> None:
    class Asks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu() if x.sum() > 0 else x

    with pytest.raises(FxpruneError, match="asks for the value of a tensor that depends on the model's input"):
        trace(Asks(), torch.randn(2, 3))


def test_hooks_and_parametrisations_of_leaves_go_on_working() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2))
    model[2].register_forward_hook(lambda module, args, output: output * 2)
    assert_same(model, trace(model, torch.randn(2, 4)), torch.randn(3, 4))


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_spectral_norm_learns_in_training_as_in_the_model(norm: Any) -> None:
    model = nn.Sequential(norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), norm(nn.ConvTranspose2d(4, 2, 3))).eval()
    x = torch.randn(2, 3, 6, 6)
    before = copy.deepcopy(model.state_dict())
    traced = pickle.loads(pickle.dumps(trace(model, x)))
    assert torch.equal(traced(x), model(x))
    for _ in range(2):
        assert torch.equal(traced.train()(x), model.train()(x))
    assert list(traced.state_dict()) == list(before)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in traced.state_dict().items())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in traced.state_dict().items())


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_checkpointed_is_traced_as_what_it_computes(reentrant: bool) -> None:
    model = net(
        lambda self, x: checkpoint(lambda y: self.b(y) * x.mean(), self.a(x), use_reentrant=reentrant),
        a=nn.Linear(4, 8), b=nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()),
    )  # fmt: skip
    x = torch.randn(3, 4)
    assert_same(model, trace(model, x), x)
    graph = check_invariant(model, x)
    assert graph.flops.total == 3 * (4 * 8 + 8 * 8 + 2 * 8)
    assert "apply" not in vars(CheckpointFunction)


def test_functions_are_called_by_torch_names_of_their_arguments() -> None:
    model = net(
        lambda self, x: torch.sum(x, axis=1, keepdims=True, out=None) + functional.softmax(x, dim=1).mean(axis=0)
    )
    traced = trace(model, torch.randn(2, 3))
    assert_same(model, traced, torch.randn(4, 3))
    named = [dict(node.kwargs) for node in traced.graph.nodes if node.kwargs]
    assert {"dim": 1, "keepdim": True} in named
    assert {"dim": 0} in named


def test_a_mask_that_is_the_same_for_all_inputs_picks_at_any_batch() -> None:
    mask = torch.tensor([True, False, True])
    model = net(
        lambda self, x: x[:, self.mask] + x[:, [False, True, True]] + x[..., ~(self.mask & self.mask)], mask=mask
    )
    assert_same(model, trace(model, torch.randn(2, 3)), torch.randn(4, 3))


@pytest.mark.parametrize("index", [np.arange(0, 8, 2), np.array([3, 1, 2, 0, 5, 6, 7, 4]), np.arange(8) % 3 == 0])
def test_arrays_of_numpy_are_indices(index: Any) -> None:
    width = len(np.arange(8)[index])
    model = net(lambda self, x: self.b(self.a(x)[:, index]), a=nn.Linear(4, 8), b=nn.Linear(width, 2))
    check_invariant(model, torch.randn(3, 4), 8)


class Reversible(torch.autograd.Function):
    """The inputs of each pair of modules are computed back from the outputs, as in a RevNet."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pairs: Any) -> Tensor:
        left, right = x.chunk(2, -1)
        with torch.no_grad():
            for f, g in pairs:
                left = left + f(right)
                right = right + g(left)
        ctx.outputs, ctx.pairs = (left.detach(), right.detach()), pairs
        return torch.cat([left.detach(), right.detach()], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        left, right = ctx.outputs
        of_left, of_right = grad.chunk(2, -1)
        for f, g in reversed(ctx.pairs):
            right, of_left = Reversible.back(g, left, right, of_left, of_right)
            left, of_right = Reversible.back(f, right, left, of_right, of_left)
        return torch.cat([of_left, of_right], -1), None

    @staticmethod
    def back(
        module: nn.Module, given: Tensor, made: Tensor, of_given: Tensor, of_made: Tensor
    ) -> tuple[Tensor, Tensor]:
        given = given.detach().requires_grad_()
        with torch.enable_grad():
            added = module(given)
        torch.autograd.backward(added, of_made)
        assert given.grad is not None
        return made - added.detach(), of_given + given.grad


class ReversibleNet(nn.Module):
    def __init__(self, wrapped: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
        wide = [nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)) for _ in range(4)]
        self.pairs = nn.ModuleList(nn.ModuleList(wide[i : i + 2]) for i in (0, 2))
        self.wrapped = wrapped

    def forward(self, x: Tensor) -> Tensor:
        pairs = [[f.__call__, lambda y, g=g: g(y)] for f, g in self.pairs] if self.wrapped else self.pairs  # type: ignore[misc]
        return self.b(Reversible.apply(self.a(x), pairs))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_function_that_is_given_modules_is_traced_as_what_it_computes(wrapped: bool) -> None:
    model, x = ReversibleNet(wrapped), torch.randn(5, 3)
    graph = check_invariant(model, x, 8 + 4 * 6)
    assert any("`Reversible` in the model itself runs modules" in remark for remark in graph.remarks)
    traced = trace(model, x.double())
    for candidate in (model, traced):
        candidate(x.double()).square().sum().backward()
    for (name, parameter), twin in zip(model.named_parameters(), traced.parameters(), strict=True):
        torch.testing.assert_close(twin.grad, parameter.grad, msg=name)


def test_a_slice_ends_where_a_tensor_says_that_a_size_gave() -> None:
    model = net(lambda self, x: x[..., : torch.ceil(torch.as_tensor(x.shape[-1] * 2 / 3)).long()] + x[:, 0, None, :1])
    assert_same(model, trace(model, torch.randn(2, 3, 7)), torch.randn(4, 3, 11))


@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_of_torch_drops_weights_in_training(need_weights: bool) -> None:
    model = net(
        lambda self, x: self.m(x, x, x, need_weights=need_weights)[0],
        m=nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True),
    )
    traced = trace(model, x := torch.randn(2, 5, 8))
    assert not any("code of eval" in note for note in trace_notes(traced).remarks)
    for _ in range(2):
        torch.manual_seed(0)
        expected = model.train()(x)
        torch.manual_seed(0)
        torch.testing.assert_close(traced.train()(x), expected)
        torch.testing.assert_close(traced.eval()(x), model.eval()(x))


def _reshaped_by_a_tensor(sizes: Tensor, x: Tensor) -> Tensor:
    return x.reshape(torch.Size(torch.cat([sizes[:1] * sizes[1:2], sizes[2:]])))


def _reshaped_by_a_list(sizes: Tensor, x: Tensor) -> Tensor:
    batch, length, width = sizes.tolist()
    return x.reshape(batch * length, width)


def _reshaped_by_integers(sizes: Tensor, x: Tensor) -> Tensor:
    return x.reshape(int(sizes[0]) * int(sizes[1]), sizes[2].item())  # type: ignore[call-overload, no-any-return]


def _reshaped_by_entries(sizes: Tensor, x: Tensor) -> Tensor:
    batch, length, width = sizes
    return x.reshape(batch * length, width)  # type: ignore[call-overload, no-any-return]


def _expanded(sizes: Tensor, x: Tensor) -> Tensor:
    return torch.ones(1, 1, 1).to(x).expand(torch.Size(sizes)) + x


def _scaled(sizes: Tensor, x: Tensor) -> Tensor:
    return x * (sizes.double()[1] / 2).item() * float(sizes[0])


@pytest.mark.parametrize(
    "use",
    [
        _reshaped_by_a_tensor, _reshaped_by_a_list, _reshaped_by_integers, _reshaped_by_entries, _expanded, _scaled,
    ],
)  # fmt: skip
def test_sizes_that_are_read_through_tensors_are_those_of_the_input(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.b(self.a(x).relu())
        return use(torch.tensor(y.shape), y)

    model = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 4))
    check_invariant(model, torch.randn(2, 5, 4), 8)
    traced = trace(model, torch.randn(2, 5, 4, dtype=torch.float64))
    for shape in ((3, 5, 4), (1, 7, 4)):
        x = torch.randn(shape, dtype=torch.float64)
        assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize(
    "read", [lambda sizes: sizes[0] > 1, lambda sizes: sizes.tolist()[0] > 1, lambda s: s.numpy()[0]]
)
def test_control_flow_on_sizes_in_tensors_is_checked(read: Callable[[Tensor], Any]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.a(x) if read(torch.tensor(x.shape)) > 0 else x

    traced = trace(net(forward, a=nn.Linear(4, 4)), torch.randn(2, 5, 4))
    with pytest.raises(FxpruneError, match="when the model was traced"):
        traced(torch.randn(1, 5, 4))

"""Losses on the outputs of a model, in whatever form they come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.errors import FxpruneError
from fxprune.ops import Trait, name_of_op, traits
from fxprune.running import trees
from fxprune.running.batch import BATCH_DIM
from fxprune.running.one_node import run_node

__all__ = [
    "are_class_labels",
    "as_class_scores",
    "class_loss",
    "distillation_loss",
    "float_outputs",
    "main_output",
    "number_of_classes",
    "separated",
]


def main_output(outputs: Any) -> Tensor:
    """The output that labels are for: the only one, else the one named "logits" or "out", else the first.

    Raises:
        FxpruneError: there is no tensor among the outputs.

    Examples:
        >>> main_output({"aux": torch.zeros(2), "out": torch.ones(1)})
        tensor([1.])
    """
    if isinstance(outputs, Tensor):
        return outputs
    for key in ("logits", "out"):
        found = outputs.get(key) if isinstance(outputs, Mapping) else getattr(outputs, key, None)
        if isinstance(found, Tensor):
            return found
    first = next(iter(trees.tensors(outputs)), None)
    if first is None:
        raise FxpruneError(f"the model's output (a {type(outputs).__name__}) holds no tensor, but a loss needs one")
    return first


def number_of_classes(outputs: Any) -> int | None:
    """The number of classes C that the outputs score; None if the main output is not of shape (N, C, ...)."""
    output = main_output(outputs)
    return int(output.shape[1]) if output.dim() >= 2 and output.is_floating_point() else None


def are_class_labels(outputs: Any, labels: Tensor) -> bool:
    """Whether labels are class numbers (N, ...) or class probabilities (N, C, ...) of a main output (N, C, ...)."""
    output = main_output(outputs)
    numbers = not labels.is_floating_point()
    return output.dim() >= 2 and labels.shape == (output.shape[:1] + output.shape[2:] if numbers else output.shape)


def class_loss(outputs: Any, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the main output (N, C, ...) with class numbers (N, ...) or class probabilities (N, C, ...).

    Raises:
        FxpruneError: the shapes of outputs and labels do not fit.

    Examples:
        >>> class_loss(torch.zeros(1, 2), torch.tensor([1]))
        tensor(0.6931)
    """
    output = main_output(outputs)
    numbers = not labels.is_floating_point()
    if not are_class_labels(outputs, labels):
        raise FxpruneError(
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype} do not fit the model's output of shape "
            f"{tuple(output.shape)}: give class numbers (N, ...) or probabilities (N, C, ...), or your own loss"
        )
    return F.cross_entropy(output.float(), labels.long() if numbers else labels, label_smoothing=label_smoothing)


def distillation_loss(student: Any, teacher: Any, temperature: float = 2.0) -> Tensor:
    """The distance of the student's outputs from the teacher's (knowledge distillation: Hinton et al., 2015).

    For a single output (N, C), taken as class scores, it is the KL divergence of the softened probabilities times the
    square of the temperature. For anything else (several outputs, dense maps) it is the mean squared error divided by
    the teacher's mean square, averaged over the outputs. If one side has outputs that the other lacks, as models in
    training have auxiliary ones, only the main outputs are compared; or, where these are of other shapes, as those of
    detectors in training are, all outputs of the side with fewer, with those of the same shapes in the same order.

    Args:
        student: the outputs that are trained.
        teacher: the outputs to reach; they get no gradient.
        temperature: of the softmax.

    Raises:
        FxpruneError: the shapes of the outputs differ.

    Examples:
        >>> distillation_loss(torch.tensor([[0.0, 1.0]]), torch.tensor([[5.0, 6.0]]))
        tensor(0.)
    """
    students, teachers = float_outputs(student), float_outputs(teacher)
    if len(students) != len(teachers) or not students:
        mains = [main_output(student)], [main_output(teacher)]
        same = mains[0][0].shape == mains[1][0].shape
        students, teachers = mains if same else _of_same_shapes(students, teachers) or mains
    pairs = list(zip(students, teachers, strict=True))
    for mine, theirs in pairs:
        if mine.shape != theirs.shape:
            raise FxpruneError(
                f"the outputs of student and teacher have shapes {tuple(mine.shape)} and {tuple(theirs.shape)}: "
                "give a teacher for the student's task"
            )
    if len(pairs) == 1 and pairs[0][0].dim() == 2 and pairs[0][0].shape[1] > 1:
        mine, theirs = (F.log_softmax(side.float() / temperature, dim=1) for side in pairs[0])
        return F.kl_div(mine, theirs.detach(), reduction="batchmean", log_target=True) * temperature**2
    return torch.stack([_relative_error(mine.float(), theirs.detach().float()) for mine, theirs in pairs]).mean()


def _of_same_shapes(students: list[Tensor], teachers: list[Tensor]) -> tuple[list[Tensor], list[Tensor]] | None:
    """All tensors of the shorter list and those of the longer one with their shapes, in order; None without these."""
    shorter, longer = sorted((students, teachers), key=len)
    left = iter(longer)
    found = [next((x for x in left if x.shape == tensor.shape), None) for tensor in shorter]
    matching = [x for x in found if x is not None]
    if not shorter or len(matching) < len(shorter):
        return None
    return (shorter, matching) if shorter is students else (matching, shorter)


def separated(model: nn.Module, outputs: Any) -> Any:
    """Outputs of a traced model in their own units, as `distillation_loss` takes them.

    Class probabilities become class scores (`as_class_scores`). Each of several probabilities (N, C), which the model
    computes with a sigmoid, becomes the two scores of yes and no, in a row of its own (N * C, 2). Outputs of three
    dimensions and more are taken apart into what the graph joins them from: a detector returns boxes in pixels and
    scores below 1 in one tensor, along its channels, and in a sum of squares the boxes are all that counts. If the
    scores come from a sigmoid, the other parts count by the highest one at their place: most boxes are of nothing.

    Args:
        model: whose graph is read. What is no graph, or was joined in other sizes, stays as it is.
        outputs: of this model, or of one with the same outputs.
    """
    nodes, tensors = _float_nodes(model), float_outputs(outputs)
    if len(nodes) != len(tensors):
        return outputs
    scores = as_class_scores(model, outputs)
    if scores is not outputs:
        return scores
    if len(nodes) == 1 and tensors[0].dim() == 2 and _ends_in(model, nodes[0], "sigmoid"):
        lowest, chance = torch.finfo(tensors[0].dtype).eps / 2, tensors[0].float()
        yes = _clamped(chance, lowest, 1 - lowest)
        return torch.stack([yes, 1 - yes], dim=-1).flatten(0, 1).log()
    parts = [part for node, tensor in zip(nodes, tensors, strict=True) for part in _parts_of(model, node, tensor)]
    return parts if len(parts) > len(tensors) else outputs


def as_class_scores(model: nn.Module, outputs: Any) -> Any:
    """The logarithms of class probabilities (N, C), which a traced model computes with a softmax; others stay.

    The softmax of these logarithms are the probabilities again. Taken for class scores themselves, probabilities would
    be nearly equal ones.
    """
    nodes, tensors = _float_nodes(model), float_outputs(outputs)
    if len(tensors) != 1 or len(nodes) != 1 or not _ends_in(model, nodes[0], "softmax"):
        return outputs
    return _clamped(tensors[0].float(), torch.finfo(tensors[0].dtype).tiny, 1.0).log()


def _clamped(chance: Tensor, lowest: float, highest: float) -> Tensor:
    """Probabilities within limits, with gradients beyond them too: what is surely wrong is to learn most."""
    return chance + (chance.clamp(lowest, highest) - chance).detach()


def _float_nodes(model: nn.Module) -> list[fx.Node]:
    """The nodes whose floating-point tensors a traced model returns; none for another module."""
    leaves: list[fx.Node] = []
    if isinstance(model, fx.GraphModule):
        fx.node.map_arg(model.graph.output_node().args, leaves.append)
    return [node for node in leaves if node.meta.get("value") is not None and float_outputs(node.meta["value"])]


def _ends_in(model: nn.Module, node: fx.Node, name: str) -> bool:
    """Whether a node of two dimensions is a sigmoid, or a softmax over the second one, or a copy of it."""
    called, dim = _called(model, node)
    return called == name and (name == "sigmoid" or dim in (None, 1, -1)) and bool(node.meta["value"].dim() == 2)


def _called(model: nn.Module, node: fx.Node) -> tuple[str, object]:
    """The name of the op, or of the class of the module, that a node or what it copies calls, and its `dim`."""
    while Trait.COPY in traits(node):
        node = node.all_input_nodes[0]
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return type(module).__name__.lower(), getattr(module, "dim", None)
    given: dict[str, Any] = dict(zip(("input", "dim"), node.args, strict=False)) | node.kwargs
    return _op(node), given.get("dim")


def _parts_of(model: nn.Module, node: fx.Node, tensor: Tensor) -> list[Tensor]:
    # Which dimension of the node each one of the output is.
    order = list(range(tensor.dim()))
    while (name := _op(node)) in _REORDERINGS or Trait.COPY in traits(node):
        if name in _REORDERINGS:
            # The dimensions of this tensor are known by their sizes.
            numbered = torch.empty([d + 1 for d in range(tensor.dim())], device="meta")
            reordered = run_node(node, (numbered, *node.args[1:]), node.kwargs)
            order = [reordered.shape[d] - 1 for d in order]
        node = node.all_input_nodes[0]
    if name not in _JOINING or tensor.dim() < 3:
        return [tensor]
    named: dict[str, Any] = dict(zip(("tensors", "dim"), node.args, strict=False)) | node.kwargs
    joined: Any = fx.node.map_arg(named["tensors"], lambda given: given.meta["value"])
    dim = named.get("dim", named.get("axis", 0)) % tensor.dim()
    # An empty list of torch is of one dimension, and nothing of it is in the output.
    sizes, place = [part.shape[dim] for part in joined if part.numel()], order.index(dim)
    if place == BATCH_DIM or sum(sizes) != tensor.shape[place]:
        return [tensor]
    parts = list(torch.split(tensor, sizes, place))
    sources = named["tensors"] if isinstance(named["tensors"], (list, tuple)) else ()
    given = [source for source, part in zip(sources, joined, strict=False) if part.numel()]
    certain = [_called(model, source)[0] == "sigmoid" for source in given]
    if sum(certain) == 1:
        chance = parts[certain.index(True)].amax(place, keepdim=True)
        parts = [part if sure else part * chance for part, sure in zip(parts, certain, strict=True)]
    return parts


def _op(node: fx.Node) -> str:
    return name_of_op(node.target) if node.op in ("call_function", "call_method") else ""


_REORDERINGS = frozenset({"transpose", "permute", "movedim", "swapaxes"})
_JOINING = frozenset({"cat", "concat", "concatenate"})


def _relative_error(mine: Tensor, theirs: Tensor) -> Tensor:
    return F.mse_loss(mine, theirs) / theirs.square().mean().clamp(min=1e-12)


def float_outputs(outputs: Any) -> list[Tensor]:
    """The floating-point tensors among the outputs, in order."""
    return [tensor for tensor in trees.tensors(outputs) if tensor.is_floating_point()]

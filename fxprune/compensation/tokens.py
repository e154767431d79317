"""Token numbers for models of text, drawn at random.

Random words are no text, but each is one that the model knows, and that says more than no samples at all.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from fxprune.data import Batch, placeholder_values
from fxprune.ops import Trait, traits
from fxprune.running import trees
from fxprune.tracing.notes import call_of

__all__ = ["has_tokens", "token_samples"]

# A table with fewer rows is one of types or of positions. Not tuned.
_FEWEST_TOKENS = 256


def has_tokens(module: fx.GraphModule) -> bool:
    """Whether a model reads token numbers, and no floating-point numbers beside them."""
    batch = Batch(*call_of(module))
    return bool(_vocabularies(module, batch)) and not any(x.is_floating_point() for x in batch.inputs)


def token_samples(module: fx.GraphModule, count: int, seed: int) -> Batch:
    """Samples as long as the example: the example's first token and then any of the vocabulary; other inputs stay.

    Args:
        module: a traced model for which `has_tokens` holds.
        count: the number of samples.
        seed: of the tokens.
    """
    random = torch.Generator().manual_seed(seed)
    example = Batch(*call_of(module))
    sizes = _vocabularies(module, example)

    def many(x: Tensor) -> Tensor:
        if not x.dim():
            return x
        samples = x[:1].repeat(count, *[1] * (x.dim() - 1))
        if id(x) not in sizes:
            return samples
        drawn = torch.randint(sizes[id(x)], samples.shape, generator=random).to(samples)
        if x.dim() > 1 and x.shape[1] > 1:
            # The first may stand for the whole text, as BERT's does.
            drawn[:, 0] = samples[:, 0]
        return drawn

    return Batch(*trees.map_tensors(many, (example.args, dict(example.kwargs))), checked=True)


def _vocabularies(module: fx.GraphModule, batch: Batch) -> dict[int, int]:
    """The number of rows of the table in which a tensor's entries are looked up, by the tensor's `id`."""
    values = placeholder_values(module.graph, batch)
    sizes: dict[int, int] = {}
    for node in module.graph.nodes:
        table = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if Trait.EMBEDDING not in traits(node, table):
            continue
        named = dict(zip(("input", "weight"), node.args, strict=False)) | node.kwargs
        source, weight = named["input"], table.weight if isinstance(table, nn.Embedding) else named["weight"]
        rows = (weight.meta["value"] if isinstance(weight, fx.Node) else weight).shape[0]
        while source.op != "placeholder" and traits(source) & (Trait.VIEW | Trait.COPY):
            source = source.all_input_nodes[0]
        value = values.get(source)
        if isinstance(value, Tensor) and rows >= _FEWEST_TOKENS:
            sizes[id(value)] = min(rows, sizes.get(id(value), rows))
    return sizes

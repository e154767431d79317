"""What torch.fx.symbolic_trace, torch.export and fxprune.trace keep of a model: the table in docs/how-it-works.md.

    python tests/benchmarks/tracers.py

How many models of timm trace is counted on the meta device. What a trace keeps is tried with weights on timm's own test
models, with dropout and, where they have it, stochastic depth. Takes about five minutes of one core.
"""

from __future__ import annotations

import copy
import datetime as dt
import warnings
from collections import Counter
from collections.abc import Callable

import timm
import torch
from torch import Tensor, fx, nn

import fxprune

Tracer = Callable[[nn.Module, Tensor], nn.Module]
LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm)
BATCH, OTHER_BATCH = 2, 3


def symbolic_trace(model: nn.Module, images: Tensor) -> nn.Module:
    return fx.symbolic_trace(model)


def export(model: nn.Module, images: Tensor) -> nn.Module:
    return torch.export.export(model, (images,)).module()


def export_free_batch(model: nn.Module, images: Tensor) -> nn.Module:
    return torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()


TRACERS: dict[str, Tracer] = {
    "symbolic_trace": symbolic_trace,
    "export": export,
    "export, free batch": export_free_batch,
    "fxprune.trace": fxprune.trace,
}


def images_for(model: nn.Module, batch: int = BATCH) -> Tensor:
    return torch.randn(batch, *model.pretrained_cfg["input_size"])


def count_traced(tracer: Tracer, names: list[str]) -> Counter[str]:
    """How many models trace on the meta device; the others by the first line of the error."""
    outcomes: Counter[str] = Counter()
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name).eval()
            images = images_for(model)
        try:
            tracer(model, images)
        except Exception as error:
            outcomes[f"{type(error).__name__}: {str(error).splitlines()[0]}"] += 1
        else:
            outcomes["traced"] += 1
    return outcomes


def same_outputs(model: nn.Module, traced: nn.Module, images: Tensor) -> bool:
    """Whether both give the same outputs to the bit, from the same random state."""
    outputs = []
    for module in (model, traced):
        torch.manual_seed(0)
        outputs.append(copy.deepcopy(module)(images))
    return torch.equal(*outputs)


def numbers_of_layers(model: nn.Module) -> Counter[type]:
    return Counter(type(module) for module in model.modules() if type(module) in LAYERS)


CHECKS: dict[str, Callable[[nn.Module, nn.Module], bool]] = {
    "`state_dict` has the model's keys": lambda model, traced: list(traced.state_dict()) == list(model.state_dict()),
    "layers of `torch.nn` are modules": (lambda model, traced: numbers_of_layers(traced) == numbers_of_layers(model)),
    "same outputs in eval mode": lambda model, traced: same_outputs(model, traced, images_for(model)),
    "same outputs for another batch size": (
        lambda model, traced: same_outputs(model, traced, images_for(model, OTHER_BATCH))
    ),
    "after `train()`, same outputs from the same seed": (
        lambda model, traced: same_outputs(copy.deepcopy(model).train(), traced.train(), images_for(model))
    ),
}


def count_kept(tracer: Tracer, names: list[str]) -> tuple[Counter[str], Counter[str]]:
    """How many models trace and how many traces pass each check, and the errors that checks end in."""
    passed: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    for name in names:
        torch.manual_seed(0)
        model = timm.create_model(name, drop_rate=0.3, drop_path_rate=0.3).eval()
        try:
            traced = tracer(model, images_for(model))
        except Exception:
            continue
        passed["traced"] += 1
        for title, check in CHECKS.items():
            try:
                passed[title] += check(model, traced)
            except Exception as error:
                errors[f"{title}: {type(error).__name__}: {str(error).splitlines()[0]}"] += 1
    return passed, errors


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    small = timm.list_models("test_*")
    kept = {title: count_kept(tracer, small) for title, tracer in TRACERS.items()}
    names = timm.list_models()
    many = {"symbolic_trace": names[::4], "export, free batch": names[::20]}
    counted = {title: count_traced(TRACERS[title], sample) for title, sample in many.items()}
    for title, outcomes in counted.items():
        print(f"\n{title}, {len(many[title])} models of timm on the meta device:")
        for outcome, number in outcomes.most_common():
            print(f"  {number} {outcome}")
    for title, (_, errors) in kept.items():
        for error, number in errors.items():
            print(f"\n{title}, {number} of {len(small)} small models: {error}")
    print(f"\nOn {dt.date.today()}, torch {torch.__version__}, timm {timm.__version__}, {len(small)} models:\n")
    print(f"| | {' | '.join(TRACERS)} |")
    print("|---" * (1 + len(TRACERS)) + "|")
    for row in ("traced", *CHECKS):
        print(f"| {row} | {' | '.join(str(kept[title][0][row]) for title in TRACERS)} |")


if __name__ == "__main__":
    main()

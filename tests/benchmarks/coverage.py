"""The model matrix: which real models fxprune prunes to half of their FLOPs, and what fails for the others.

    python tests/benchmarks/coverage.py                       all models of models.txt
    python tests/benchmarks/coverage.py LIST_FILE MODEL ...   these
    python tests/benchmarks/coverage.py all                   all of timm and torchvision, on the meta device
    python tests/benchmarks/coverage.py --one timm:resnet18   one, in this process, with the traceback
    python tests/benchmarks/coverage.py --untrained ...       without the backward pass and the training step
    python tests/benchmarks/coverage.py --device cuda ...     on a GPU; models that it has no memory for fail

A model has the name that `fxprune.models.load_model` takes. Shapes of inputs that are not the default ones follow it:
"torchvision:raft_small 1,3,128,128 1,3,128,128". Of a torchvision detector, the backbone is pruned.

Each model runs in a process of its own, forked from one that has imported everything, with limits on memory and time.
Each result is written as a line of JSON. A run that was interrupted continues where it stopped, unless fxprune's source
has changed since (`--any-source` ignores that).
"""

from __future__ import annotations

import copy
import functools
import io
import re
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxprune
from fxprune.models import example_inputs, load_model
from fxprune.running import trees
from fxprune.running.calls import call_arguments
from fxprune.running.devices import on_device_of
from fxprune.running.double import outputs_in_double
from fxprune.verification import TOLERANCE, largest_error, mask

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))
import many  # noqa: E402
import on_meta  # noqa: E402
from many import Result  # noqa: E402
from shared import parser_of  # noqa: E402

Checks = Mapping[str, Callable[[str, dict[str, Any], Result], None]]


def check(
    spec: str,
    say: Callable[[str], None] = lambda stage: None,
    reraise: bool = False,
    checks: Checks | None = None,
    device: str = "cpu",
) -> Result:
    """Prune one model to half of its FLOPs and check the result.

    Args:
        spec: the name that `load_model` takes, then shapes of inputs, if any; the prefix `meta:` chooses the checks of
            `on_meta`.
        say: called with the name of each check before it starts.
        reraise: raise the exception of the first failure.
        checks: the checks; default: `CHECKS`, or those of `on_meta`.
        device: the device of the model.

    Returns:
        a dict for JSON: `ok`, `failed` (check -> reason) and the measurements.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    result: Result = {"model": spec, "ok": False, "failed": {}}
    state: dict[str, Any] = {"device": device}
    began = time.perf_counter()
    on_the_meta_device = spec.startswith(on_meta.PREFIX)
    chosen: Checks = checks or (on_meta.CHECKS if on_the_meta_device else CHECKS)
    # If one of these fails, the checks after it have nothing to check.
    needed = on_meta.NEEDED if on_the_meta_device else {"build", "prune"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, run_check in chosen.items():
            if needed & result["failed"].keys():
                break
            say(name)
            try:
                run_check(spec, state, result)
            except Exception as error:
                if reraise:
                    raise
                result["failed"][name] = f"{_reason(error)}{_where(error)}"
    result["ok"] = not result["failed"]
    result["trained"] = "train" in chosen
    result["total_seconds"] = round(time.perf_counter() - began, 2)
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return result


def _check_build(spec: str, state: dict[str, Any], result: Result) -> None:
    name, *shapes = spec.split()
    model = on_meta.backbone_of_detector(load_model(name))
    given = tuple(torch.randn([int(size) for size in shape.split(",")]) for shape in shapes)
    set_up(state, model, given or example_inputs(model))


def set_up(state: dict[str, Any], model: nn.Module, inputs: Any) -> None:
    """Move model and inputs to their device and keep them for the other checks."""
    model.to(state["device"])
    randomise_constants(model.eval())
    state["model"], state["inputs"] = model, on_device_of(model, inputs)
    state["before"] = _fingerprint(model)


def _check_analyze(spec: str, state: dict[str, Any], result: Result) -> None:
    start = time.process_time()
    traced = fxprune.trace(state["model"], state["inputs"])
    traced_at = time.process_time()
    graph = fxprune.analyze(traced)
    result["trace_seconds"] = round(traced_at - start, 3)
    result["analyze_seconds"] = round(time.process_time() - traced_at, 3)
    result["nodes"] = len(traced.graph.nodes)
    result["groups"] = len(graph.groups)
    result["channels"] = sum(len(group.channels) for group in graph.groups)
    result["blocks"] = len(graph.blocks)
    state["graph"] = graph
    frozen: Counter[str] = Counter()
    for item in graph.frozen:
        frozen[item.reason] += len(item.channels)
    result["frozen"] = dict(frozen.most_common())


def _check_prune(spec: str, state: dict[str, Any], result: Result) -> None:
    start = time.process_time()
    # If no shapes are given, call it without inputs, as a user would.
    given = state["inputs"] if " " in spec else None
    state["pruned"] = fxprune.prune(state["model"], flops=0.5, example_inputs=given, compensate=False)
    result["prune_seconds"] = round(time.process_time() - start, 3)


def _check_untouched(spec: str, state: dict[str, Any], result: Result) -> None:
    _require(_fingerprint(state["model"]) == state["before"], "the input model was changed")
    _require(state["model"].state_dict().keys() == state["pruned"].state_dict().keys(), "state_dict keys differ")


def _check_shape(spec: str, state: dict[str, Any], result: Result) -> None:
    with torch.no_grad():
        before = _shapes(call(state["model"].eval(), state["inputs"]))
        after = _shapes(call(state["pruned"].eval(), state["inputs"]))
    _require(before == after, f"output shape {before} became {after}")


def _check_flops(spec: str, state: dict[str, Any], result: Result) -> None:
    before = fxprune.count_flops(state["model"], state["inputs"])
    after = fxprune.count_flops(state["pruned"], state["inputs"])
    result.update(flops_before=before, flops_after=after, ratio=round(after / before, 6))
    budget = result.get("budget", 0.5)
    _require((budget - on_meta.SLACK) * before <= after <= budget * before, f"FLOPs ratio {after / before:.5f}")


def _check_predicted(spec: str, state: dict[str, Any], result: Result) -> None:
    plan = fxprune.plan_of(state["pruned"])
    result["predicted"] = int(plan.flops)
    for when, predicted, counted in (
        ("before", plan.flops_before, result["flops_before"]),
        ("after", plan.flops, result["flops_after"]),
    ):
        _require(predicted == counted, f"FLOPs {when}: predicted {predicted:,}, fvcore {counted:,}")


def _check_verify(spec: str, state: dict[str, Any], result: Result) -> None:
    error = float(fxprune.verify(state["model"], state["pruned"]))
    result["error"] = error
    if error > TOLERANCE:
        noise = result["own_noise"] = own_noise(state, state["inputs"])
        raise AssertionError(
            f"error {error:.3g} against the zero-masked original, which itself changes by {noise:.3g} "
            "where its inputs change by one part in 2^52"
        )


def _check_blocks(spec: str, state: dict[str, Any], result: Result) -> None:
    """FLOPs and outputs again, without half of the blocks."""
    if state["graph"].blocks:
        plan = on_meta.plan_without_blocks(state["graph"])
        pruned = fxprune.rewrite(state["graph"], plan)
        counted = fxprune.count_flops(pruned, state["inputs"])
        _require(plan.flops == counted, f"FLOPs without blocks: predicted {plan.flops:,}, fvcore {counted:,}")
        _check_verify(spec, {**state, "pruned": pruned}, result)


def own_noise(state: dict[str, Any], inputs: Any, *, training: bool = False) -> float:
    """The effect of rounding: how the masked original's outputs change with the last digit of its inputs."""
    masked = mask(copy.deepcopy(state["model"]).double(), fxprune.plan_of(state["pruned"]))
    args, kwargs = call_arguments(inputs)
    nudged = trees.map_tensors(lambda x: x.double() * (1 + 2**-52) if x.is_floating_point() else x, (args, kwargs))
    runs = [outputs_in_double(copy.deepcopy(masked), *given, training=training) for given in ((args, kwargs), nudged)]
    return largest_error(*runs)


def _check_backward(spec: str, state: dict[str, Any], result: Result) -> None:
    pruned = state["pruned"].eval()
    pruned.zero_grad(set_to_none=True)
    torch.autograd.backward(_loss(call(pruned, state["inputs"])))
    gradients = [p.grad for p in pruned.parameters() if p.grad is not None]
    _require(bool(gradients), "no parameter has a gradient")
    _require(all(bool(g.isfinite().all()) for g in gradients), "a gradient is not finite")
    pruned.zero_grad(set_to_none=True)


def _check_train(spec: str, state: dict[str, Any], result: Result) -> None:
    pruned = state["pruned"].train()
    batch = tuple(torch.cat([x, x.flip(-1)]) for x in state["inputs"])
    optimizer = torch.optim.SGD(pruned.parameters(), lr=1e-6)
    loss = _loss(pruned(*batch))
    torch.autograd.backward(loss)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    _require(bool(loss.isfinite()), f"training loss is {float(loss)}")
    pruned.eval()


def _check_reload(spec: str, state: dict[str, Any], result: Result) -> None:
    pruned = state["pruned"].eval()
    file = io.BytesIO()
    torch.save(pruned.state_dict(), file)
    file.seek(0)
    fresh = copy.deepcopy(pruned)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
        fresh.load_state_dict(torch.load(file, weights_only=True))
        same = zip(*(trees.tensors(call(net, state["inputs"])) for net in (fresh, pruned)), strict=True)
        _require(all(torch.equal(a, b) for a, b in same), "outputs differ after save and reload")


CHECKS = {
    "build": _check_build,
    "analyze": _check_analyze,
    "prune": _check_prune,
    "untouched": _check_untouched,
    "shape": _check_shape,
    "flops": _check_flops,
    "predicted": _check_predicted,
    "verify": _check_verify,
    "blocks": _check_blocks,
    "backward": _check_backward,
    "train": _check_train,
    "reload": _check_reload,
}


def random_model(spec: str) -> nn.Module:
    """A model by name, in eval mode, always with the same random weights."""
    torch.manual_seed(0)
    model = load_model(spec).eval()
    randomise_constants(model)
    return model


def randomise_constants(model: nn.Module) -> None:
    """Give constant parameters and BatchNorm statistics random values.

    Residual branches, layer scales and heads that start at zero, and statistics that start at 0 and 1, would hide
    errors from every check.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            constant = parameter.flatten()[0].item() if parameter.numel() else 0.0
            if not parameter.is_floating_point() or not bool((parameter == constant).all()):
                continue
            if abs(constant) < 0.1:
                parameter.normal_(0.0, 0.1)
            else:
                parameter.uniform_(0.5, 1.5).mul_(constant)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
                assert module.running_mean is not None
                module.running_mean.normal_(0.0, 0.1)
                module.running_var.uniform_(0.5, 1.5)


def _fingerprint(model: nn.Module) -> list[tuple[Any, ...]]:
    tensors = [
        (name, id(tensor), tuple(tensor.shape), tensor._version, tensor.data_ptr())
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    ]
    return [*tensors, *((name, module.training) for name, module in model.named_modules())]


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's outputs: for a tensor, a tuple of positional or a dict of keyword arguments.

    They are copied, since some models write into their inputs.
    """
    args, kwargs = trees.map_tensors(torch.clone, call_arguments(inputs))
    return model(*args, **kwargs)


def _shapes(output: Any) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in trees.tensors(output)]


def _loss(output: Any) -> Tensor:
    return torch.stack([tensor.float().square().mean() for tensor in trees.tensors(output)]).sum()


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise AssertionError(reason)


def _reason(error: BaseException) -> str:
    # Without the paths of this machine.
    text = re.sub(r"\S*/site-packages/", "", " ".join(str(error).split()))
    text = text if len(text) <= 400 else f"{text[:300]} ... {text[-90:]}"
    return text if isinstance(error, AssertionError) and text else f"{type(error).__name__}: {text}"


def _where(error: BaseException) -> str:
    """The innermost frame of the error within fxprune."""
    package = Path(fxprune.__file__).parent
    frames = [f for f in traceback.extract_tb(error.__traceback__) if package in Path(f.filename).parents]
    return f" [{Path(frames[-1].filename).relative_to(package.parent)}:{frames[-1].lineno}]" if frames else ""


def _specs(arguments: Sequence[str]) -> list[str]:
    specs = on_meta.all_models() if "all" in arguments else []
    for argument in [a for a in arguments if a != "all"] if arguments else [str(HERE / "models.txt")]:
        path = Path(argument)
        lines = path.read_text().splitlines() if path.is_file() else [argument]
        specs += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return list(dict.fromkeys(specs))


def main() -> int:
    """The command line; exit code 1 if fewer models pass than must."""
    parser = parser_of(__doc__)
    parser.add_argument(
        "models", nargs="*", help="list files, models such as timm:resnet18, or all (default: models.txt)"
    )
    many.add_options(parser, "build/coverage.jsonl", seconds=900, gib=14)
    parser.add_argument(
        "--only-failed", action="store_true", help="of these, only those that failed in OUTPUT's last results"
    )
    parser.add_argument("--fresh", action="store_true", help="delete OUTPUT first")
    parser.add_argument("--at-least", type=int, help="how many must pass (default: all)")
    parser.add_argument("--untrained", action="store_true", help="without the slowest checks: backward and training")
    parser.add_argument("--device", default="cpu", help="device of the models (default cpu)")
    options = parser.parse_args()
    untrained = {name: check for name, check in CHECKS.items() if name not in ("backward", "train")}
    chosen = functools.partial(check, checks=untrained if options.untrained else None, device=options.device)
    if options.one:
        many.show_one(chosen, options.one)
        return 0
    if options.fresh:
        options.output.unlink(missing_ok=True)
    specs = _specs(options.models)
    if options.only_failed:
        known = many.read(options.output)
        specs = [spec for spec in specs if not known.get(spec, {"ok": False})["ok"]]
    results = many.check_all(specs, chosen, options, ("timm", "torchvision"))
    print(many.table(results))
    needed = len(results) if options.at_least is None else options.at_least
    return 0 if sum(result["ok"] for result in results) >= needed else 1


if __name__ == "__main__":
    sys.exit(main())

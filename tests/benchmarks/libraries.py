"""Which models of libraries that fxprune does not know it prunes to half of their FLOPs.

    pip install -r tests/benchmarks/libraries.txt
    python tests/benchmarks/libraries.py                          all of `library_models` and `library_transformers`
    python tests/benchmarks/libraries.py monai diffusers:VQModel  these libraries and models
    python tests/benchmarks/libraries.py --one monai:UNet-2d      one, in this process, with the traceback
    python tests/benchmarks/libraries.py --report                 write docs/libraries.md from all results

Models of libraries that are not installed are left out. The weights are random and the models small. The checks are
those of `coverage.py`; each model runs in a process of its own with limits on memory and time, and a run that was
interrupted continues where it stopped. A model that cannot be pruned to half of its FLOPs is pruned to the lowest of
`BUDGETS` that it can reach.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import itertools
import time
from collections.abc import Sequence
from typing import Any

import library_checks
import many
import torch
from coverage import CHECKS, call, check, set_up
from libraries_report import write_report
from library_models import LIBRARIES, MODELS
from many import Result
from shared import DOCS, parser_of, settle

import fxprune
from fxprune.errors import FxpruneError
from fxprune.running import trees

# Each adds models of its kind.
for _kind in (
    *("converted", "restoration", "sound", "transformers", "transformers_images", "transformers_more", "vision", "vit"),
):
    importlib.import_module(f"library_{_kind}")
BUDGETS = (0.5, 0.6, 0.7, 0.8, 0.9)


class _NotRunError(Exception):
    """A model does not run without fxprune."""


def _build(spec: str, state: dict[str, Any], result: Result) -> None:
    result["version"] = importlib.metadata.version(LIBRARIES[spec.partition(":")[0]])
    try:
        model, inputs = MODELS[spec]()
        with torch.no_grad():
            outputs = call(model.eval(), inputs)
        if not trees.tensors(outputs):
            raise ValueError("gives no tensor in eval")
    except Exception as error:
        raise _NotRunError(f"{type(error).__name__}: {error}") from error
    model.requires_grad_(True)
    set_up(state, model, inputs)


def _prune(spec: str, state: dict[str, Any], result: Result) -> None:
    start = time.process_time()
    for budget in BUDGETS:
        try:
            state["pruned"] = fxprune.prune(
                state["model"], budget, example_inputs=state["inputs"], compensate=False, progress=False
            )
        except FxpruneError as error:
            if "cannot be reached" not in str(error) or budget == BUDGETS[-1]:
                raise
            result.setdefault("limit", str(error))
        else:
            result.update(budget=budget, prune_seconds=round(time.process_time() - start, 3))
            return


def _backward(spec: str, state: dict[str, Any], result: Result) -> None:
    try:
        CHECKS["backward"](spec, state, result)
    except Exception:
        try:
            CHECKS["backward"](spec, {**state, "pruned": state["model"]}, result)
        except Exception as error:
            result["no_backward"] = f"nor has the original one: {type(error).__name__}: {error}"
        else:
            raise


def _own_class(spec: str, state: dict[str, Any], result: Result) -> None:
    """Whether the model's own class takes the pruned weights; a model may pass without."""
    try:
        fxprune.restore_class(state["model"], state["pruned"], state["inputs"])
        result["own_class"] = True
    except FxpruneError:
        result["own_class"] = False


OWN_CHECKS = {
    "build": _build,
    "analyze": CHECKS["analyze"],
    "prune": _prune,
    **{name: CHECKS[name] for name in ("untouched", "shape", "flops", "predicted", "verify")},
    "backward": _backward,
    "own class": _own_class,
    **library_checks.CHECKS,
}


def _wanted(arguments: Sequence[str]) -> list[str]:
    """The models to try, one of each library in turn; a message names libraries that are not installed."""
    of: dict[str, list[str]] = {library: [] for library in LIBRARIES}
    for name in MODELS:
        of[name.partition(":")[0]].append(name)
    for library in [library for library in of if importlib.util.find_spec(library) is None]:
        print(f"{library} is not installed: pip install {LIBRARIES[library]}")
        del of[library]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*of.values()))
    return [name for name in turns if name and (not arguments or {name, name.partition(":")[0]} & set(arguments))]


def _warm_up() -> None:
    """Import what torch imports when it is first needed, before the processes are forked."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    check("", checks=OWN_CHECKS | {"build": lambda spec, state, result: set_up(state, net, torch.randn(3, 4))})


def main() -> None:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("models", nargs="*", help="libraries, or models such as monai:UNet-2d (default: all)")
    many.add_options(parser, "build/libraries.jsonl", seconds=120, gib=8)
    parser.add_argument("--report", action="store_true", help="write the page of the results instead")
    options = parser.parse_args()
    if options.report:
        known = many.read(options.output)
        write_report([known[name] for name in MODELS if name in known], len(MODELS), DOCS / "libraries.md")
        return
    unknown = {*options.models, *filter(None, [options.one])} - {*MODELS, *LIBRARIES}
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: no library and no model of the list in library_*.py")
    own_check = functools.partial(check, checks=OWN_CHECKS)
    if options.one:
        settle()
        many.show_one(own_check, options.one)
        return
    specs = _wanted(options.models)
    _warm_up()
    print(many.table(many.check_all(specs, own_check, options, {spec.partition(":")[0] for spec in specs})))


if __name__ == "__main__":
    main()

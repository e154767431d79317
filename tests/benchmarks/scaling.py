"""How the time of each stage grows with the depth of a network.

    python tests/benchmarks/scaling.py [--nodes 300 1000 3000 10000] [--kind residual plain split]

Prints CPU seconds per stage and the exponent of a power law fitted to them (1 is linear growth).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from shared import parser_of, settle
from torch import Tensor, nn

import fxprune

STAGES = ("trace", "analyze", "scores", "plan", "rewrite")
WIDTH = 16


class Block(nn.Module):
    """A bottleneck with a residual connection: nine nodes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        out: Tensor = self.relu(self.conv3(y) + x)
        return out


class PlainBlock(Block):
    """Without residual connections, so there are as many groups as convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        out: Tensor = self.relu(self.conv3(y))
        return out


class SplitBlock(Block):
    """Sizes, reshapes, a split and a concatenation: 20 nodes."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        left, right = self.bn1(self.conv1(x)).chunk(2, dim=1)
        y = torch.cat([right, self.relu(left)], dim=1)
        y = y.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        out: Tensor = self.relu(self.bn2(self.conv2(y)) + x)
        return out


KINDS: dict[str, tuple[type[Block], int]] = {
    "residual": (Block, 9),
    "plain": (PlainBlock, 8),
    "split": (SplitBlock, 20),
}


def network(kind: str, nodes: int) -> nn.Module:
    """A classifier with about that many nodes."""
    block, each = KINDS[kind]
    blocks = [block(WIDTH) for _ in range(max(1, round(nodes / each)))]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10))
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3), *blocks, *head).eval()


def measure(model: nn.Module) -> tuple[int, dict[str, float]]:
    """The number of nodes, and CPU seconds of every stage."""
    seconds: dict[str, float] = {}

    def timed(stage: str, function: Callable[[], object]) -> object:
        gc.collect()
        start = time.process_time()
        result = function()
        seconds[stage] = time.process_time() - start
        return result

    example = torch.randn(1, 3, 8, 8)
    traced = timed("trace", lambda: fxprune.trace(model, example, copy=False))
    assert isinstance(traced, torch.fx.GraphModule)
    graph = timed("analyze", lambda: fxprune.analyze(traced))
    assert isinstance(graph, fxprune.ChannelGraph)
    scores = fxprune.scores(graph)
    timed("scores", lambda: fxprune.scores(graph))
    plan = timed("plan", lambda: fxprune.make_plan(graph, scores, flops=0.5))
    assert isinstance(plan, fxprune.Plan)
    timed("rewrite", lambda: fxprune.rewrite(graph, plan))
    return len(traced.graph.nodes), seconds


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope of log time over log size."""
    slope, _ = np.polyfit(np.log(sizes), np.log(seconds), 1)
    return float(slope)


def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[300, 1000, 3000, 10000], help="sizes of the networks")
    parser.add_argument("--kind", nargs="+", choices=list(KINDS), default=list(KINDS), help="kinds of blocks")
    options = parser.parse_args()
    settle()
    torch.manual_seed(0)
    measure(network("residual", 100))  # includes imports and first calls
    for kind in options.kind:
        print(f"\n{kind:<10} {'nodes':>7}" + "".join(f"{stage:>10}" for stage in (*STAGES, "all")))
        table: list[tuple[int, dict[str, float]]] = []
        for wanted in options.nodes:
            nodes, seconds = measure(network(kind, wanted))
            seconds["all"] = sum(seconds.values())
            table.append((nodes, seconds))
            print(f"{'':<10} {nodes:>7}" + "".join(f"{s:>10.3f}" for s in seconds.values()), flush=True)
        if len(table) > 1:
            sizes = [nodes for nodes, _ in table]
            slopes = [exponent(sizes, [seconds[stage] for _, seconds in table]) for stage in (*STAGES, "all")]
            print(f"{'':<10} {'exponent':>7}" + "".join(f"{slope:>10.2f}" for slope in slopes).removeprefix(" "))


if __name__ == "__main__":
    main()

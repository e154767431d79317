"""The small nets of the Fashion-MNIST benchmark, for grey images of 28 x 28."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["NETS", "MobileNet", "ResNet", "mobilenet", "resnet20", "vgg"]


def _conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv_norm(inputs, outputs, stride=stride), nn.ReLU(inplace=True), *_conv_norm(outputs, outputs)
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv_norm(inputs, outputs, 1, stride))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """The CIFAR ResNet of He et al. (2016) with `6 * blocks + 2` layers.

    `pool` > 1 shrinks the image right after the first convolution, which makes an epoch cheaper.
    """

    def __init__(self, blocks: int = 3, width: int = 16, pool: int = 1, inputs: int = 1, classes: int = 10) -> None:
        super().__init__()
        stem = [*_conv_norm(inputs, width), nn.ReLU(inplace=True)]
        self.stem = nn.Sequential(*stem, nn.MaxPool2d(pool)) if pool > 1 else nn.Sequential(*stem)
        stages: list[nn.Module] = []
        before = width
        for stage in range(3):
            after = width * 2**stage
            for block in range(blocks):
                stages.append(BasicBlock(before, after, 2 if stage and not block else 1))
                before = after
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.stages(self.stem(x))).flatten(1))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear bottleneck (Sandler et al., 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            *_conv_norm(inputs, hidden, 1),
            nn.ReLU6(inplace=True),
            *_conv_norm(hidden, hidden, stride=stride, groups=hidden),
            nn.ReLU6(inplace=True),
            *_conv_norm(hidden, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.shortcut else self.body(x)


class MobileNet(nn.Module):
    """A MobileNetV2 with fewer blocks."""

    SETTINGS = ((16, 1, 1), (24, 2, 2), (40, 2, 2), (64, 2, 1))  # width, blocks, stride of the first

    def __init__(self, expansion: int = 4, head: int = 160, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = [*_conv_norm(1, 16, stride=2), nn.ReLU6(inplace=True)]
        before = 16
        for after, blocks, stride in self.SETTINGS:
            for block in range(blocks):
                layers.append(InvertedResidual(before, after, 1 if block else stride, expansion))
                before = after
        self.features = nn.Sequential(*layers, *_conv_norm(before, head, 1), nn.ReLU6(inplace=True))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


def resnet20() -> nn.Module:
    return ResNet(blocks=3, width=16, pool=2)


def vgg() -> nn.Module:
    """Convolutions and max pooling without shortcuts."""
    layers: list[nn.Module] = []
    before = 1
    for after in (16, "pool", 32, 32, "pool", 64, 64, 64):
        if isinstance(after, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [*_conv_norm(before, after), nn.ReLU(inplace=True)]
            before = after
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 128), nn.ReLU(inplace=True), nn.Linear(128, 10)]
    return nn.Sequential(*layers)


def mobilenet() -> nn.Module:
    return MobileNet()


NETS: dict[str, Callable[[], nn.Module]] = {"resnet20": resnet20, "vgg": vgg, "mobilenet": mobilenet}

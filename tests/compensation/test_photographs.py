"""Crops of photographs, and the scales of pixel values."""

from __future__ import annotations

import pytest
import torch

from fxprune.compensation.photographs import SCALES, Scale, crops


@pytest.mark.parametrize(("channels", "size"), [(3, (32, 32)), (1, (28, 28)), (3, (24, 60))])
def test_crops_are_images_of_the_size(channels: int, size: tuple[int, int]) -> None:
    made = crops(20, channels, size)
    assert made.shape == (20, channels, *size)
    assert 0 <= float(made.min()) < float(made.max()) <= 1
    # They show something, each something else.
    assert float(made.flatten(1).std(1).min()) > 0.01
    assert len({tuple(image.flatten().tolist()) for image in made}) == 20
    assert torch.equal(made, crops(20, channels, size))
    assert not torch.equal(made, crops(20, channels, size, seed=1))


def test_fewer_crops_are_the_first_of_more() -> None:
    assert torch.equal(crops(4, 3, (16, 16)), crops(30, 3, (16, 16))[:4])


def test_scales() -> None:
    pixels = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 1, 3)
    assert (Scale("", (0.5,), (0.25,))(pixels) == torch.tensor([-2.0, 0.0, 2.0])).all()
    byte = next(scale for scale in SCALES if "255" in scale.name)
    torch.testing.assert_close(byte(pixels).flatten(), torch.tensor([0.0, 127.5, 255.0]))
    imagenet = SCALES[0](torch.full((1, 3, 1, 1), 0.5)).flatten()
    torch.testing.assert_close(imagenet, torch.tensor([0.015 / 0.229, 0.044 / 0.224, 0.094 / 0.225]))
    # Grey: the mean over the colours.
    torch.testing.assert_close(SCALES[0](pixels)[..., 1].item(), (0.5 - 0.449) / 0.226)

"""Images are resized where they have another size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fxprune.running.resizing import pooled_where_needed, resized_where_needed


@pytest.mark.parametrize("size", [6, (6, 6), torch.Size([6, 6]), 9, (3, 6)])
@pytest.mark.parametrize("options", [{}, {"mode": "bilinear", "align_corners": True}, {"mode": "bicubic"}])
def test_it_gives_what_interpolate_does(size: int, options: dict[str, bool | str]) -> None:
    image = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(resized_where_needed(image, size, **options), F.interpolate(image, size, **options))


def test_an_image_of_that_size_is_returned_as_it_is() -> None:
    image = torch.randn(2, 3, 6, 5)
    assert resized_where_needed(image, (6, 5), mode="bilinear") is image


@pytest.mark.parametrize("size", [6, (6, 6), (None, 3), (6, None), 4])
def test_it_gives_what_pooling_does(size: int) -> None:
    image = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(pooled_where_needed(image, size), F.adaptive_avg_pool2d(image, size))
    assert (pooled_where_needed(image, size) is image) == (size not in (4, (None, 3)))

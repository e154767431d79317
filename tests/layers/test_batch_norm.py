"""BatchNorms are known by their class, and by whether they have statistics."""

from __future__ import annotations

import pytest
from torch import nn

from fxprune.layers.batch_norm import has_statistics, is_batch_norm


@pytest.mark.parametrize(
    ("module", "batch_norm", "statistics"),
    [
        (nn.BatchNorm2d(3), True, True),
        (nn.SyncBatchNorm(3), True, True),
        (nn.BatchNorm1d(3, track_running_stats=False), True, False),
        (nn.InstanceNorm2d(3), False, False),
        (nn.GroupNorm(1, 3), False, False),
        (None, False, False),
    ],
)
def test_batch_norms_and_those_with_statistics(module: nn.Module | None, batch_norm: bool, statistics: bool) -> None:
    assert is_batch_norm(module) == batch_norm
    assert has_statistics(module) == statistics

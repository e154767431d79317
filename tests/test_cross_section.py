"""A cross-section of the model matrix: real models of many families, each through all of its checks."""

from __future__ import annotations

import pytest
from benchmarks.coverage import HERE, check

MODELS = (HERE / "models-fast.txt").read_text().split()


@pytest.mark.parametrize("spec", MODELS)
def test_a_real_model_is_pruned_to_half_of_its_flops(spec: str) -> None:
    pytest.importorskip(spec.partition(":")[0])
    assert check(spec)["failed"] == {}

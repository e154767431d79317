"""The original is built again where its library can."""

from __future__ import annotations

import pytest

import fxprune
from fxprune.models import load_model


def test_a_model_of_timm_is_built_again() -> None:
    pytest.importorskip("timm")
    network = load_model("timm:test_vit", num_classes=10)
    made = fxprune.report(fxprune.prune(network, 0.5, compensate=False, method="l2"), repeats=1)
    assert made.certificate is not None
    assert (made.certificate.of, made.certificate.holds) == ("structure", True)
    assert made.certificate.against == "rebuilt"
    assert "fxprune.load(&#x27;small.safetensors&#x27;)" in made.to_html()

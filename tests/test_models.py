from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune.errors import FxpruneError
from fxprune.models import Source, example_inputs, load_model, source_of


@pytest.mark.parametrize(
    ("spec", "kwargs", "shape"),
    [
        ("timm:test_vit", {}, (1, 3, 160, 160)),
        ("timm:test_vit", {"img_size": 96}, (1, 3, 96, 96)),
        ("timm:test_vit", {"img_size": (96, 64)}, (1, 3, 96, 64)),
        ("timm:test_resnet", {}, (1, 3, 160, 160)),
        ("timm:test_resnet", {"in_chans": 1}, (1, 1, 160, 160)),
        ("timm:inception_v3", {}, (1, 3, 299, 299)),
        ("timm:cs3darknet_focus_s", {}, (1, 3, 256, 256)),
        ("torchvision:squeezenet1_1", {}, (1, 3, 224, 224)),
        ("torchvision:inception_v3", {}, (1, 3, 299, 299)),
        ("torchvision:vit_b_32", {"image_size": 64}, (1, 3, 64, 64)),
        ("torchvision:r3d_18", {}, (1, 3, 16, 112, 112)),
        ("torchvision:swin3d_t", {}, (1, 3, 16, 224, 224)),
    ],
)
def test_a_library_model_has_example_inputs(spec: str, kwargs: dict[str, object], shape: tuple[int, ...]) -> None:
    library = spec.partition(":")[0]
    pytest.importorskip(library)
    assert [tuple(x.shape) for x in example_inputs(load_model(spec, **kwargs))] == [shape]


def test_example_inputs_are_the_same_each_time_and_leave_the_random_state_alone() -> None:
    pytest.importorskip("torchvision")
    model = load_model("torchvision:squeezenet1_1")
    state = torch.random.get_rng_state()
    first, second = example_inputs(model), example_inputs(model)
    assert torch.equal(first[0], second[0])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_example_inputs_have_the_dtype_and_device_of_the_model() -> None:
    pytest.importorskip("torchvision")
    model = load_model("torchvision:squeezenet1_1")
    assert example_inputs(model.double())[0].dtype == torch.float64
    assert example_inputs(model.to("meta"))[0].device.type == "meta"


def test_an_unknown_module_has_no_example_inputs() -> None:
    with pytest.raises(FxpruneError, match=r"no example inputs: Linear .* pass example_inputs="):
        example_inputs(nn.Linear(1, 1))


def test_a_detection_model_has_no_example_inputs() -> None:
    detection = pytest.importorskip("torchvision.models.detection")
    model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    with pytest.raises(FxpruneError, match="no example inputs"):
        example_inputs(model)


def test_a_callable_of_ones_own_is_a_model() -> None:
    assert isinstance(load_model("torch.nn:Linear", in_features=2, out_features=3), nn.Linear)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet50", r"'resnet50' is not understood: give timm:NAME, .* \(timm:resnet50\?\)"),
        ("", "is not understood"),
        ("timm:", "is not understood"),
        ("timm:resnet5O", "timm has no 'resnet5O'; did you mean .*timm:resnet50"),
        ("torchvision:resnet5O", "torchvision has no 'resnet5O'; did you mean .*torchvision:resnet50"),
        ("torch.nn:Linaer", "torch.nn has no 'Linaer'; did you mean torch.nn:Linear"),
        ("no_such_package.at_all:build", "needs no_such_package.at_all, which cannot be imported"),
        ("torch.nn:functional", "functional is a module, which cannot be called"),
        ("torch.nn:Linear", "could not be built: TypeError"),
        ("math:floor", "could not be built"),
        ("builtins:dict", "gave a dict, not a torch.nn.Module"),
    ],
)
def test_a_model_that_is_not_there_is_an_error_that_helps(spec: str, message: str) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    with pytest.raises(FxpruneError, match=message):
        load_model(spec)


def test_a_model_that_was_loaded_by_name_can_be_built_again() -> None:
    model = load_model("torch.nn:Linear", in_features=2, out_features=3)
    assert source_of(model) == Source("torch.nn:Linear", {"in_features": 2, "out_features": 3})
    assert source_of(nn.Linear(2, 3)) is None


def test_a_timm_model_knows_its_name_classes_and_size() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_vit", num_classes=7, img_size=96, in_chans=1)
    source = source_of(model)
    assert source == Source("timm:test_vit", {"num_classes": 7, "in_chans": 1, "img_size": [96, 96]})
    again = load_model(source.spec, **source.arguments)
    assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]

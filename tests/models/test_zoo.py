"""Each network is the one of its paper: published sizes, and the sizes that fit small images."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torchvision.models import mobilenet_v2, vgg11_bn

import models
from errors import InputError
from models import registry
from models.cnn4 import CNN4
from models.maps import Halve, normalisation
from models.vit import fitting_patch
from randomness import generator

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
PUBLISHED = {
    "cnn4": 113_088 - 256 + 1600 * 5 + 5,  # Conv-4 for 84 x 84 pixels, less its biases, and a head for 5 classes
    "mlp": 199_210,  # McMahan et al. 2017, section 3
    "mobilenet_v2": 3_504_872,  # torchvision
    "resnet18": 11_173_962,  # the CIFAR variant with 10 classes
    "vit_tiny": 5_717_416,  # timm's deit_tiny_patch16_224
    "vgg11": 9_231_114 - 2752,  # the CIFAR variant with 10 classes, less the biases before normalisation
}


def test_what_a_network_reads():
    assert {name: models.modality(name) for name in models.names() if models.modality(name) != "image"} == {
        "multimodal": "record",
        "text_transformer": "text",
    }
    with pytest.raises(InputError, match=r"no model 'vit'; did you mean vit_tiny"):
        models.modality("vit")


def count(name: str, shape: tuple[int, ...], classes: int, **options) -> int:
    return parameters(models.build(name, shape, classes, **options))


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "classes", "options"),
    [
        ("cnn4", (3, 84, 84), 5, {"norm": "batch"}),
        ("mlp", (1, 28, 28), 10, {}),
        ("mobilenet_v2", (3, 32, 32), 1000, {"norm": "batch"}),
        ("resnet18", (3, 32, 32), 10, {"norm": "batch"}),
        ("vit_tiny", (3, 224, 224), 1000, {"patch": 16}),
        ("vgg11", (3, 32, 32), 10, {"norm": "batch"}),
    ],
)
def test_published_numbers_of_parameters(name, shape, classes, options):
    assert count(name, shape, classes, **options) == PUBLISHED[name]


def test_slim_resnet18_of_width_20_has_the_1_1_million_parameters_of_its_paper():
    assert round(count("slim_resnet18", (3, 32, 32), 100) / 1e6, 1) == 1.1
    assert count("slim_resnet18", (3, 32, 32), 100, width=64) == count("resnet18", (3, 32, 32), 100)


@pytest.mark.parametrize("width", [8, 16, 24, 32, 45, 48])
def test_the_width_of_mobilenet_is_the_papers_multiplier(width):
    with torch.device("meta"):
        theirs = mobilenet_v2(width_mult=width / 32, num_classes=100)
    assert count("mobilenet_v2", (3, 32, 32), 100, width=width) == parameters(theirs)


def test_the_convolutions_of_vgg11_are_torchvisions():
    with torch.device("meta"):
        theirs = vgg11_bn().features
    ours = models.build("vgg11", (3, 224, 224), 10, norm="batch").body
    weights = [[tuple(p.shape) for p in model.parameters() if p.dim() == 4] for model in (ours, theirs)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("side", "width"), [(8, 64), (28, 64), (31, 64), (32, 256), (64, 1024)])
def test_cnn4_keeps_the_pixels_of_its_last_map(side, width):
    assert models.build("cnn4", (3, side, side), 10).width == width


def test_maps_of_one_pixel_are_not_halved():
    assert [Halve()(torch.zeros(1, 1, *size)).shape[2:] for size in [(7, 4), (1, 5), (1, 1)]] == [
        (3, 2),
        (1, 2),
        (1, 1),
    ]


@pytest.mark.parametrize("channels", [4, 8, 12, 16, 64])
def test_no_group_is_a_single_number_on_a_map_of_one_pixel(channels):
    norm = normalisation("group", channels, smallest=4)
    maps = torch.rand(2, channels, 1, 1, generator=torch.Generator().manual_seed(0))
    assert channels // norm.num_groups >= 4 or norm.num_groups == 1
    assert norm(maps).abs().max() > 0.1


def test_cnn4_refuses_a_width_that_normalisation_would_silence():
    with pytest.raises(InputError, match=r"model\.width must be at least 4 \(got 3\)"):
        models.build("cnn4", (1, 8, 8), 10, width=3)
    assert isinstance(models.build("cnn4", (1, 8, 8), 10, width=4), CNN4)


@pytest.mark.parametrize(
    ("height", "width", "patch"),
    [(8, 8, 2), (16, 16, 2), (28, 28, 4), (32, 32, 4), (33, 33, 3), (48, 48, 6), (64, 64, 8), (9, 15, 3), (32, 64, 8)],
)
def test_the_patch_makes_about_eight_tokens_a_side(height, width, patch):
    assert fitting_patch(height, width) == patch


def test_an_image_without_a_fitting_patch_needs_one_given():
    with pytest.raises(InputError, match=r"model\.patch: no patch .* of 29 x 29 pixels; give one of 1, 29"):
        models.build("vit_tiny", (1, 29, 29), 10)
    assert models.build("vit_tiny", (1, 29, 29), 10, patch=1).positions.num_embeddings == 29 * 29 + 1


@pytest.mark.parametrize("patch", [3, 64])
def test_a_patch_that_does_not_divide_the_image_is_refused(patch):
    with pytest.raises(InputError, match=rf"model\.patch must divide .* \(got {patch} for 32 x 32 pixels\)"):
        models.build("vit_tiny", (3, 32, 32), 10, patch=patch)


@pytest.mark.parametrize(("name", "shape"), [("vit_tiny", (3, 32, 32)), ("text_transformer", (64,))])
def test_heads_that_do_not_divide_the_width_are_refused(name, shape):
    with pytest.raises(InputError, match=r"model\.heads must divide model\.width \(got 5 heads, width 32\)"):
        models.build(name, shape, 10, width=32, heads=5)


def test_the_document_lists_every_network_as_it_is():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*)$", DOCUMENT.read_text().partition("Times:")[0], re.MULTILINE))
    assert sorted(rows) == [name for name in models.names() if models.modality(name) != "record"]
    for name, row in rows.items():
        shape = (512,) if models.modality(name) == "text" else (3, 32, 32)
        options, size, *_ = row.split(" | ")
        assert options == ", ".join(f"{key} {value}" for key, value in models.check(name, {}).items())
        assert size == f"{count(name, shape, 100):,}"


def test_the_documents_own_network_works():
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "@register" in block)
    names = {"math": math, "nn": torch.nn, "Tensor": torch.Tensor, "register": registry.register}
    try:
        exec(code, names | {"Classifier": registry.Classifier, "PositiveInt": registry.PositiveInt})
        architecture = models.Architecture("linear", (1, 8, 8), 10, {"width": 7, "features": 3})
        model = architecture.load(architecture.initial(generator(0, "model")))
        assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    finally:
        registry._constructors.pop("linear", None)

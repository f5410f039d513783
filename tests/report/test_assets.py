"""Every source that params.yaml names is known by its licence, or said not to be."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from report.assets import UNKNOWN, about, sources

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    "source, words",
    [
        ("digits", "CC BY 4.0"),
        ("parquet:data/cifar100", "CIFAR-100"),
        ("torchvision:CIFAR100", "CIFAR-100"),
        ("torchvision:CIFAR10", "CIFAR-10 "),
        ("csv:data/ag_news/test.csv", "non-commercial"),
        ("image:china.jpg", "CC BY 2.0"),
        ("parquet:data/patients", UNKNOWN),
        ("timm:vit_base_patch16_224", UNKNOWN),
    ],
)
def test_licences(source, words):
    assert words in about(source)


def test_the_sources_of_the_projects_own_streams_are_known():
    streams = yaml.safe_load((ROOT / "params.yaml").read_text())["streams"]
    named = [about for about in streams.values() if about and about.get("source")]
    assert len(named) >= 3
    for stream in named:
        found = sources({"stream_parameters": stream, "method_parameters": {}})
        assert found and all(about(source) != UNKNOWN for source in found), stream


def test_what_server_and_foundation_model_are_made_from_is_named_too():
    experiment = {
        "stream_parameters": {"source": "tasks", "multitask": {"images": "digits", "texts": "csv:data/ag_news"}},
        "foundation": {"source": "hf:data/minilm"},
        "method_parameters": {"surrogate": {"source": "public"}, "data": {"source": "image:china.jpg"}, "rank": 4},
    }
    assert sources(experiment) == ["digits", "csv:data/ag_news", "hf:data/minilm", "image:china.jpg"]

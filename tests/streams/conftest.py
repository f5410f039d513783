"""What the tests of the sources share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from errors import InputError
from streams.parameters import StreamParameters
from streams.sources import Source, load


@pytest.fixture
def opened(tmp_path) -> Callable[..., Source]:
    """Decodes and opens a source of the folder `tmp_path`."""

    def opened(source: str = "parquet:raw", **others) -> Source:
        return load(StreamParameters(**{"source": source, "clients": 1, "experiences": 1} | others), tmp_path)

    return opened


@pytest.fixture
def refused(opened, tmp_path) -> Callable[..., str]:
    """The message with which a source is refused; nothing half-written is left."""

    def refused(*source: str, **others) -> str:
        cache = tmp_path / "built" / "sources"
        before = sorted(cache.iterdir()) if cache.exists() else []
        with pytest.raises(InputError) as caught:
            opened(*source, **others)
        assert not cache.exists() or sorted(cache.iterdir()) == before
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refused

"""The proxy that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness.proxy import ProxyProcess
from harness.registries import RegistryUnderTest
from harness.world import World


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A running proxy with the settings in the module's `PROXY`, to which tests add tenants of their own."""
    registry = RegistryUnderTest(tmp_path_factory.mktemp("registry"))
    registry.do(lambda service: service.tenants())
    settings = getattr(request.module, "PROXY", {})
    with (
        ProxyProcess(tmp_path_factory.mktemp("proxy"), registry.url, registry.keys, **settings) as proxy,
        World(registry, proxy) as made,
    ):
        yield made

from __future__ import annotations

import pytest

from proxy.routing.self_checks import RECHECK, RETRY, SecretsCheck
from registry.contract import RegistryUnavailable


class Registry:
    """Answers what it is told to."""

    def __init__(self) -> None:
        self.answer: str | Exception = ""

    async def inspect(self) -> str:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize("first", ["", "key 'b' is missing"])
async def test_what_the_last_look_has_found_decides(first: str) -> None:
    registry = Registry()
    check = SecretsCheck(registry.inspect, timeout=1.0)
    for answer in (first, "key 'c' is missing", ""):
        registry.answer = answer
        await check.look()
        assert check.problem == answer


async def test_a_registry_that_cannot_be_asked_changes_nothing() -> None:
    registry = Registry()
    check = SecretsCheck(registry.inspect, timeout=1.0)
    registry.answer = RegistryUnavailable("down")
    await check.look()
    assert not check.known
    registry.answer = "key 'b' is missing"
    await check.look()
    registry.answer = RegistryUnavailable("down")
    await check.look()
    assert check.problem == "key 'b' is missing"


async def test_a_look_is_due_soon_while_something_is_wrong_and_seldom_while_nothing_is() -> None:
    registry = Registry()
    check = SecretsCheck(registry.inspect, timeout=1.0)
    assert check.is_due(1000.0)
    assert not check.is_due(1000.0 + RETRY / 2)
    assert check.is_due(1000.0 + RETRY), "nothing is known yet"
    await check.look()
    assert not check.is_due(1000.0 + RETRY + RECHECK / 2)
    assert check.is_due(1000.0 + RETRY + RECHECK)
    registry.answer = "key 'b' is missing"
    await check.look()
    assert check.is_due(1000.0 + 2 * RETRY + RECHECK)

"""Asynchronous objects used from blocking code."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any


class Blocking:
    """Stands for an object whose methods are coroutines: calls wait for their results on the runner's loop.

    What a call returns is wrapped again where it is asynchronous itself: a cursor, a context, a generator.
    """

    def __init__(self, runner: asyncio.Runner, target: Any) -> None:
        self._runner = runner
        self._target = target

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return value

        def call(*arguments: Any, **named: Any) -> Any:
            return self._settled(value(*arguments, **named))

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            setattr(self._target, name, value)

    def _settled(self, result: Any) -> Any:
        if inspect.isawaitable(result) and not hasattr(result, "__aenter__"):
            result = self._runner.run(_outcome(result))
        asynchronous = hasattr(result, "__aenter__") or hasattr(result, "__aiter__")
        return Blocking(self._runner, result) if asynchronous else result

    def __enter__(self) -> Any:
        entered = self._runner.run(_outcome(self._target.__aenter__()))
        return self if entered is self._target else self._settled(entered)

    def __exit__(self, *exception: object) -> Any:
        return self._runner.run(_outcome(self._target.__aexit__(*exception)))

    def __iter__(self) -> Iterator[Any]:
        iterator = self._target.__aiter__()
        while True:
            try:
                yield self._runner.run(_outcome(iterator.__anext__()))
            except StopAsyncIteration:
                return


async def _outcome(awaitable: Any) -> Any:
    return await awaitable

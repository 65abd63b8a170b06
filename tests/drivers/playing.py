"""Runs one driver's program on one way and reads what it prints."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from harness.process import Process, close, kill, start

from drivers.model import Scenario, Transcript

PATIENCE = 45.0
TAIL = 600

Transcripts = dict[Scenario, list[Transcript]]


@dataclass(slots=True)
class Stage:
    """The programs that run now, all of which end with it."""

    _running: set[Process] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closed: bool = False

    def start(self, command: Sequence[str], env: Mapping[str, str], directory: Path) -> Process | None:
        """Start a program in a process group of its own; None once the stage is closed."""
        with self._lock:
            if self._closed:
                return None
            process = start(command, env=env, cwd=directory, stderr=subprocess.PIPE)
            self._running.add(process)
            return process

    def end(self, process: Process) -> None:
        """Kill a program and all that it has started."""
        kill(process)
        with self._lock:
            self._running.discard(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            left = list(self._running)
        for process in left:
            self.end(process)


class Player:
    """Plays scenarios with one driver on one way; `begins` tells afterwards when each began, in seconds since 1970.

    A program that is silent for `patience` seconds, or ends, costs only the scenario that it was at.
    """

    def __init__(
        self, stage: Stage, command: Sequence[str], env: Mapping[str, str], directory: Path, patience: float = PATIENCE
    ) -> None:
        self._stage = stage
        self._command = command
        self._env = env
        self._directory = directory
        self._patience = patience
        self.begins: list[tuple[float, Scenario]] = []

    def play(self, scenarios: Sequence[Scenario], workers: int) -> Transcripts:
        """All transcripts, ordered by worker; a failure is a step of its own."""
        found: Transcripts = {}
        left = list(scenarios)
        while left:
            failed, why = self._run(left, workers, found)
            left = [scenario for scenario in left if scenario not in found]
            if failed is None:
                for scenario in left:
                    found[scenario] = [Transcript(0, [("ended by", why or "no answer")])]
                break
        for transcripts in found.values():
            transcripts.sort(key=lambda transcript: transcript.worker)
        return found

    def _run(self, scenarios: Sequence[Scenario], workers: int, found: Transcripts) -> tuple[Scenario | None, str]:
        """Run the program once; return the scenario that it failed in, and why."""
        env = {**self._env, "DRIVERS_SCENARIOS": ",".join(scenarios), "DRIVERS_WORKERS": str(workers)}
        process = self._stage.start(self._command, env, self._directory)
        if process is None:
            return None, "interrupted"
        said: queue.Queue[dict[str, Any] | None] = queue.Queue()
        complaints: list[str] = []
        threads = [
            threading.Thread(target=_read, args=(process, said), daemon=True),
            threading.Thread(target=_complaints, args=(process, complaints), daemon=True),
        ]
        for thread in threads:
            thread.start()
        current: Scenario | None = None
        why = ""
        try:
            while True:
                answer = said.get(timeout=self._patience)
                if answer is None:
                    break
                if "begin" in answer:
                    current = Scenario(answer["begin"])
                    self.begins.append((float(answer["at"]), current))
                else:
                    current = _take(answer, current, found)
        except queue.Empty:
            why = f"no answer within {self._patience:g} s"
        finally:
            self._stage.end(process)
            for thread in threads:
                thread.join()
            close(process)
        if current is not None or not why:
            why = why or f"the program ended with status {process.returncode}: {''.join(complaints)[-TAIL:].strip()}"
        if current is not None:
            found.setdefault(current, []).append(Transcript(workers, [("ended by", why)]))
        return current, why


def _take(answer: dict[str, Any], current: Scenario | None, found: Transcripts) -> Scenario | None:
    """Enter what the program said; return the scenario that it is at."""
    if "end" in answer:
        return None
    steps = [(str(step), str(text)) for step, text in answer.get("steps", [])]
    transcript = Transcript(answer["worker"], steps, answer.get("na"), answer.get("backends"))
    found.setdefault(Scenario(answer["scenario"]), []).append(transcript)
    return current


def _read(process: Process, said: queue.Queue[dict[str, Any] | None]) -> None:
    for line in process.stdout or ():
        try:
            said.put(json.loads(line))
        except ValueError:
            continue
    said.put(None)


def _complaints(process: Process, lines: list[str]) -> None:
    lines.extend(process.stderr or ())

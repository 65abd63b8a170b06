"""pgbench in all of its modes, many clients on few backends; afterwards the books must be balanced."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from drivers.scripts.play import Notes, Scenario, play
from drivers.scripts.programs import PLAIN, SECURE, Programs, bin_dir, login, not_here, run
from drivers.scripts.session import Driver, Place

CLIENTS, TURNS = 8, 40
FIGURES = re.compile(
    r"^(number of transactions actually processed: .*|number of failed transactions: .*|pgbench: .*|status .*)$",
    re.MULTILINE,
)
SUMS = """
select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history),
       (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history),
       (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history),
       (select count(*) from pgbench_history)
"""
PIPELINED = """\\set id random(1, 100)
\\startpipeline
select name from items where id = :id;
begin;
select :id + 1;
end;
\\syncpipeline
select 1;
\\endpipeline
"""
FAILING = """\\set zero 0
begin;
select 1 / :zero::int4;
end;
"""
CURSOR = """begin;
declare c cursor for select id from items;
fetch 10 from c;
fetch 10 from c;
end;
"""


def pgbench(
    place: Place, *arguments: str, script: str = "", clients: int = CLIENTS, version: int = PLAIN, **env: str
) -> str:
    """The figures of a run that do not depend on time.

    With -M prepared pgbench waits for the answer to each Parse and lets its other clients wait as well, also those in
    a transaction: on fewer backends than clients it needs a thread for each of them.
    """
    program = str(bin_dir(version) / "pgbench")
    url = place.tls_url if version == SECURE else place.url
    shared = ["-n", "-c", str(clients), "-j", str(clients), "-t", str(TURNS)]
    with tempfile.TemporaryDirectory() as scratch:
        if script:
            file = Path(scratch) / "script.sql"
            file.write_text(script)
            arguments = (*arguments, "-f", str(file))
        said = run([program, *shared, *arguments], **{**login(url), **env})
    return "\n".join(_plain(line) for line in FIGURES.findall(said) if "pgbench (" not in line)


def _plain(line: str) -> str:
    """A line without the file's place and the client's number, of which any may be the first."""
    return re.sub(r"client \d+", "client N", line.replace("\n", " "))


def books(place: Place) -> str:
    program = str(bin_dir(PLAIN) / "psql")
    return run([program, "-X", "-A", "-t", "-c", SUMS], **login(place.url))


def ledger(mode: str) -> Scenario:
    """pgbench's own transaction in this mode."""

    def scenario(_driver: Driver, place: Place, notes: Notes) -> None:
        program = str(bin_dir(PLAIN) / "pgbench")
        made = run([program, "-i", "-q", "-s", "1"], **login(place.url)).splitlines()
        notes.note("made", made[-1])
        notes.note("transactions", pgbench(place, "-M", mode))
        notes.note("books", books(place))
        notes.note("reading", pgbench(place, "-M", mode, "-S"))
        notes.note("a connection each", pgbench(place, "-M", mode, "-S", "-C"))

    return scenario


def pipeline(_driver: Driver, place: Place, notes: Notes) -> None:
    for mode in ("extended", "prepared"):
        notes.note(mode, pgbench(place, "-M", mode, script=PIPELINED))


def errors(_driver: Driver, place: Place, notes: Notes) -> None:
    for mode in ("simple", "extended", "prepared"):
        notes.note(mode, pgbench(place, "-M", mode, script=FAILING, clients=1))


def cursors(_driver: Driver, place: Place, notes: Notes) -> None:
    for mode in ("simple", "extended", "prepared"):
        notes.note(mode, pgbench(place, "-M", mode, script=CURSOR))


def tls(_driver: Driver, place: Place, notes: Notes) -> None:
    checks: dict[str, Any] = {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": place.ca}
    script = "select name from items where id = 1;\n"
    for mode in ("simple", "prepared"):
        notes.note(mode, pgbench(place, "-M", mode, script=script, version=SECURE, **checks))
    notes.note("a connection each", pgbench(place, "-C", script=script, version=SECURE, **checks))


OTHERWISE = "pgbench's scripts have nothing of the kind"
SCENARIOS: dict[str, Scenario] = {
    "connect": not_here("a connection for each transaction is in `transactions`"),
    "types": not_here(OTHERWISE),
    "parameters": not_here(OTHERWISE),
    "named": ledger("prepared"),
    "unnamed": ledger("extended"),
    "batch": not_here(OTHERWISE),
    "pipeline": pipeline,
    "transactions": ledger("simple"),
    "errors": errors,
    "cursors": cursors,
    "copy": not_here("its tables are filled by COPY in `transactions`"),
    "cancel": not_here(OTHERWISE),
    "notify": not_here(OTHERWISE),
    "tls": tls,
    "settings": not_here(OTHERWISE),
    "pool": not_here("its many clients are a pool"),
    "reconnect": not_here(OTHERWISE),
}

if __name__ == "__main__":
    play(Programs(), SCENARIOS, frozenset(SCENARIOS))

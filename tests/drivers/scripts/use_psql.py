"""psql: scripts with its own commands for the extended protocol and for pipelines, Ctrl-C, \\copy, LISTEN."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from typing import Any

from drivers.scripts.play import Notes, Scenario, play
from drivers.scripts.programs import PLAIN, SECURE, Programs, bin_dir, environment, login, not_here, run
from drivers.scripts.session import Driver, Place

CANCEL_AFTER = 1.0
OWNER = re.compile(r"\b\w+_18_[0-9a-f]{8}\b")
VERBOSE = r"\set VERBOSITY sqlstate" + "\n"


def psql(place: Place, script: str, *options: str, version: int = PLAIN, **env: str) -> str:
    """What psql prints for a script, errors with their SQLSTATE."""
    url = place.tls_url if version == SECURE else place.url
    command = [str(bin_dir(version) / "psql"), "-X", "-A", "-t", *options]
    return run(command, stdin=VERBOSE + script, **{**login(url), **env})


def connect(_driver: Driver, place: Place, notes: Notes) -> None:
    url = [str(bin_dir(PLAIN) / "psql"), "-X", "-A", "-t", "-c", "select 1"]
    place_only = place.url.partition("@")[2]
    user = login(place.url)
    notes.note(
        "by URL", run([*url, f"postgresql://{place_only}"], PGUSER=user["PGUSER"], PGPASSWORD=user["PGPASSWORD"])
    )
    settings = "show application_name; show timezone; show work_mem;"
    asked: dict[str, Any] = {
        "PGAPPNAME": f"drivers {notes.worker}",
        "PGOPTIONS": "-c timezone=Asia/Tokyo -c work_mem=7MB",
    }
    notes.note("settings", psql(place, settings, **asked))
    notes.note("database name", psql(place, "select current_database() = :'DBNAME';"))
    notes.note("variables", psql(place, r"\echo :SERVER_VERSION_NUM :ENCODING"))
    notes.note("wrong password", psql(place, "select 1", PGPASSWORD="wrong").replace(user["PGUSER"], "USER"))
    unknown = psql(place, "select 1", PGDATABASE="no_such_database")
    notes.note("unknown database", "28P01" if "password authentication failed" in unknown else unknown)
    notes.note("again", psql(place, "select 1;\n\\c\nselect 2;\n", "-q"))


def types(_driver: Driver, place: Place, notes: Notes) -> None:
    notes.note(
        "described",
        OWNER.sub("OWNER", psql(place, "\\d items\n\\dT+ mood\n\\df whose\n\\dn own_*\n\\l nothing\n\\dt\n")),
    )
    notes.note("expanded", psql(place, "select * from items order by id limit 3 \\gx\n"))
    notes.note("gdesc", psql(place, "select 1 as a, 'x'::mood as b, null::numeric(10,2) \\gdesc\n"))
    notes.note("portions", psql(place, "\\set FETCH_COUNT 7\nselect id from items order by id;\n"))


def parameters(_driver: Driver, place: Place, notes: Notes) -> None:
    script = "".join(f"select $1::int4 + $2::int4 \\bind {n} 1 \\g\n" for n in range(12))
    notes.note("bound", psql(place, script))
    notes.note("bad", psql(place, "select $1::int4 \\bind seven \\g\nselect $1::text \\bind after \\g\n"))


def named(_driver: Driver, place: Place, notes: Notes) -> None:
    # The other statements in between let the backend change.
    turns = "".join(f"\\bind_named plus {n} \\g\nselect {n};\n\\bind_named name {n + 1} \\g\n" for n in range(12))
    begin = "select $1::int4 + 1 \\parse plus\nselect name from items where id = $1::int4 \\parse name\n"
    notes.note("turns", psql(place, begin + turns))
    notes.note(
        "closed", psql(place, begin + "\\close_prepared plus\n\\bind_named plus 1 \\g\n\\bind_named name 1 \\g\n")
    )
    failing = (
        "select 1 / $1::int4 \\parse divide\n"
        "\\bind_named divide 0 \\g\n"
        "\\bind_named divide 1 \\g\n"
        "selekt \\parse wrong\n"
    )
    notes.note(
        "errors",
        psql(
            place,
            failing
            + "begin;\n\\bind_named divide 0 \\g\n\\bind_named divide 1 \\g\nrollback;\n\\bind_named divide 1 \\g\n",
        ),
    )
    by_hand = (
        "prepare p(int) as select $1 + 1;\nexecute p(1);\nselect 1;\nexecute p(2);\ndeallocate p;\nexecute p(3);\n"
    )
    notes.note("SQL's own", psql(place, by_hand))
    notes.note(
        "deallocate",
        psql(place, begin + "deallocate plus;\n\\bind_named plus 1 \\g\ndeallocate all;\n\\bind_named name 1 \\g\n"),
    )


def pipeline(_driver: Driver, place: Place, notes: Notes) -> None:
    batch = "\\startpipeline\n" + "".join(f"select {n} \\bind \\sendpipeline\n" for n in range(20))
    notes.note("many", psql(place, batch + "\\endpipeline\nselect 'after';\n"))
    notes.note(
        "syncs",
        psql(
            place,
            batch
            + (
                "\\syncpipeline\n"
                "select 1 / 0 \\bind \\sendpipeline\n"
                "select 2 \\bind \\sendpipeline\n"
                "\\syncpipeline\n"
                "select 3 \\bind \\sendpipeline\n"
                "\\endpipeline\n"
                "select 'after';\n"
            ),
        ),
    )
    notes.note(
        "flush",
        psql(
            place,
            (
                "\\startpipeline\n"
                "select 1 \\bind \\sendpipeline\n"
                "\\flushrequest\n"
                "\\getresults\n"
                "select 2 \\bind \\sendpipeline\n"
                "\\endpipeline\n"
            ),
        ),
    )


def transactions(_driver: Driver, place: Place, notes: Notes) -> None:
    table = f"work_{notes.worker}"
    notes.note(
        "commit",
        psql(place, f"delete from {table};\nbegin;\ninsert into {table} values (1, 'a');\ncommit;\ntable {table};\n"),
    )
    notes.note(
        "rollback",
        psql(
            place, (f"begin;\ninsert into {table} values (2, 'b');\nselect 1/0;\nselect 1;\ncommit;\ntable {table};\n")
        ),
    )
    points = (
        "begin;\n"
        "savepoint s;\n"
        f"insert into {table} values (3, 'c');\n"
        "selekt;\n"
        "rollback to s;\n"
        f"insert into {table} values (4, 'd');\n"
        "commit;\n"
        f"table {table};\n"
    )
    notes.note("savepoints", psql(place, points))
    notes.note("on error rollback", psql(place, "\\set ON_ERROR_ROLLBACK on\nbegin;\nselekt;\nselect 1;\ncommit;\n"))
    notes.note("single transaction", psql(place, f"insert into {table} values (5, 'e');\nselekt;\n", "-1"))
    notes.note(
        "chain",
        psql(
            place,
            (
                "begin isolation level serializable read only;\n"
                "commit and chain;\n"
                "show transaction_isolation;\n"
                "rollback;\n"
                "show transaction_isolation;\n"
            ),
        ),
    )
    notes.note("at the end", psql(place, f"table {table};\ndelete from {table};\n"))


def errors(_driver: Driver, place: Place, notes: Notes) -> None:
    script = (
        "selekt 1;\n"
        "select 1/0;\n"
        "select * from no_such_table;\n"
        "insert into items values (1, 'x');\n"
        "select fail_with('P1234');\n"
        "select 'fine';\n"
    )
    notes.note("one by one", psql(place, script))
    notes.note("in one message", psql(place, "select 1 \\; select 1/0 \\; select 2;\nselect 3 \\; select 4;\n"))
    notes.note(
        "shown",
        psql(place, ("selekt 1;\n\\errverbose\n\\echo :LAST_ERROR_SQLSTATE :ERROR\n"), "-v", "VERBOSITY=verbose"),
    )
    notes.note("notices", psql(place, "do $$ begin raise notice 'one'; raise warning 'two'; end $$;\n"))
    notes.note("stop", psql(place, script, "-v", "ON_ERROR_STOP=1"))


def cursors(_driver: Driver, place: Place, notes: Notes) -> None:
    script = (
        "begin;\n"
        "declare c cursor for select id from items order by id;\n"
        "fetch 2 from c;\n"
        "fetch 2 from c;\n"
        "close c;\n"
        "fetch 1 from c;\n"
        "rollback;\n"
    )
    notes.note("by hand", psql(place, script))
    held = (
        "declare h cursor with hold for select id from items order by id;\n"
        "select 'between';\n"
        "fetch 2 from h;\n"
        "select 'between';\n"
        "fetch 2 from h;\n"
        "close h;\n"
    )
    notes.note("with hold", psql(place, held))
    failing = "\\set FETCH_COUNT 10\nselect 1 / (50 - id) from items order by id;\nselect 'after';\n"
    # How many rows are printed before the error is known depends on what arrives when.
    notes.note("portions with an error", psql(place, failing).lstrip("01\n"))


def copy(_driver: Driver, place: Place, notes: Notes) -> None:
    table = f"work_{notes.worker}"
    lines = "".join(f"{n}\trow {n}\n" for n in range(20_000))
    notes.note(
        "in",
        psql(
            place,
            f"delete from {table};\ncopy {table} from stdin;\n{lines}\\.\nselect count(*), sum(id) from {table};\n",
        ),
    )
    out = psql(place, f"copy {table} to stdout;\n")
    notes.note("out", len(out))
    notes.note(
        "bad row", psql(place, f"copy {table} from stdin;\nseven\tbad\n{lines}\\.\nselect count(*) from {table};\n")
    )
    notes.note(
        "copy",
        psql(
            place,
            (
                f"\\copy (select id from {table} order by id limit 3) to stdout (format csv, header)\n"
                f"delete from {table};\n"
            ),
        ),
    )
    notes.note("error", psql(place, "copy (select 1 / (50 - id) from items) to stdout;\nselect 'after';\n"))


def cancel(_driver: Driver, place: Place, notes: Notes) -> None:
    notes.note("Ctrl-C", interrupted(place, PLAIN, **login(place.url)))


def interrupted(_place: Place, version: int, **env: str) -> str:
    """What psql prints when it is interrupted in the middle of its second statement."""
    process = subprocess.Popen(
        [str(bin_dir(version) / "psql"), "-X", "-A", "-t"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**env),
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{VERBOSE}select 'begun';\nselect pg_sleep(30);\nselect 'after';\n")
    process.stdin.close()
    begun = process.stdout.readline()
    time.sleep(CANCEL_AFTER)
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    return f"{begun}{rest}status {process.wait()}"


def notify(_driver: Driver, place: Place, notes: Notes) -> None:
    channel = f"channel_{notes.worker}"
    script = (
        f"listen {channel};\n"
        f"notify {channel}, 'one';\n"
        "select 1;\n"
        "begin;\n"
        f"notify {channel}, 'two';\n"
        "commit;\n"
        "unlisten *;\n"
        f"notify {channel};\n"
        "select 2;\n"
    )
    told = psql(place, script)
    notes.note("to itself", "".join(line.partition(" from server process")[0] + "\n" for line in told.splitlines()))


def tls(_driver: Driver, place: Place, notes: Notes) -> None:
    checked = {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": place.ca}
    notes.note("required", psql(place, "select 1;\n", version=SECURE, PGSSLMODE="require"))
    notes.note(
        "verified", psql(place, "select length(repeat('x', 3000000));\nselect 1/0;\n", version=SECURE, **checked)
    )
    wrong = psql(place, "select 1;\n", version=SECURE, PGSSLMODE="verify-full", PGSSLROOTCERT=place.wrong_ca)
    notes.note("another authority", wrong)
    notes.note("channel binding", psql(place, "select 1;\n", version=SECURE, PGCHANNELBINDING="require", **checked))
    notes.note("direct", psql(place, "select 1;\n", version=SECURE, PGSSLNEGOTIATION="direct", **checked))
    notes.note("Ctrl-C", interrupted(place, SECURE, **{**login(place.tls_url), **checked}))


def settings(_driver: Driver, place: Place, notes: Notes) -> None:
    several = "show timezone;\nshow work_mem;\n" * 4
    notes.note(
        "set",
        psql(
            place,
            (
                "set timezone to 'Asia/Kathmandu';\n"
                f"set work_mem to '{11 + notes.worker}MB';\n"
                f"{several}reset all;\n"
                "show timezone;\n"
                "show work_mem;\n"
            ),
        ),
    )
    notes.note(
        "set local", psql(place, "begin;\nset local work_mem to '99MB';\nshow work_mem;\ncommit;\nshow work_mem;\n")
    )
    notes.note("rolled back", psql(place, "begin;\nset work_mem to '88MB';\nrollback;\nshow work_mem;\n"))
    notes.note(
        "temporary table",
        psql(place, "create temp table mine (a int);\ninsert into mine values (1);\ntable mine;\ndrop table mine;\n"),
    )
    notes.note(
        "encoding", psql(place, "\\encoding LATIN1\nshow client_encoding;\n\\encoding UTF8\nshow client_encoding;\n")
    )
    notes.note("discard all", psql(place, "set work_mem to '77MB';\ndiscard all;\nshow work_mem;\n"))


def reconnect(_driver: Driver, place: Place, notes: Notes) -> None:
    told = psql(place, "select 1;\nselect pg_terminate_backend(pg_backend_pid()), pg_sleep(5);\nselect 2;\n")
    notes.note("cut by its own query", told)
    notes.note("afterwards", psql(place, "select 3;\n"))


SCENARIOS: dict[str, Scenario] = {
    "connect": connect,
    "types": types,
    "parameters": parameters,
    "named": named,
    "unnamed": not_here("what is bound without a name is in `parameters`"),
    "batch": not_here("psql has no batches"),
    "pipeline": pipeline,
    "transactions": transactions,
    "errors": errors,
    "cursors": cursors,
    "copy": copy,
    "cancel": cancel,
    "notify": notify,
    "tls": tls,
    "settings": settings,
    "pool": not_here("psql has one connection"),
    "reconnect": reconnect,
}

if __name__ == "__main__":
    play(Programs(), SCENARIOS, frozenset({"reconnect"}))

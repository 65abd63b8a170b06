from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Failure
from proxy.routing.names import (
    NameRules,
    Reading,
    Selectors,
    Source,
    disagreement,
    name_rules,
    read,
    selectors_from_startup,
)
from proxy.wire.startup import PROTOCOL_3_0, StartupMessage

ALL = name_rules(sni_patterns=["{tenant}.db.example.com"], database_patterns=["db_{tenant}", "{tenant}-live"])


def says(reading: Reading) -> list[tuple[str, tuple[str, ...]]]:
    return [(one.source.value, one.names) for one in reading.statements]


def startup(**parameters: str) -> StartupMessage:
    return StartupMessage(PROTOCOL_3_0, tuple(parameters.items()))


def test_each_selector_spells_the_tenant() -> None:
    reading = read(
        Selectors("app.acme", "db_acme", (("tenant", "acme"), ("work_mem", "4MB")), "ACME.db.example.com."), ALL
    )
    assert says(reading) == [
        ("sni", ("acme",)),
        ("options", ("acme",)),
        ("user", ("acme",)),
        ("database", ("db_acme", "acme")),
    ]
    assert reading.user == "app"
    assert reading.settings == (("work_mem", "4MB"),)
    assert disagreement(reading.statements) is None


@pytest.mark.parametrize(
    "options",
    ["-c tenant=acme", "--tenant=acme", "tenant=acme", "-ctenant=acme", "-c pgtenant.tenant=acme", "-c TENANT=acme"],
)
def test_options_name_the_tenant_in_every_way_and_the_backend_never_sees_it(options: str) -> None:
    selectors = selectors_from_startup(startup(user="app", options=f"-c work_mem=4MB {options}"), None, ALL)
    reading = read(selectors, ALL)
    assert says(reading) == [("options", ("acme",))]
    assert reading.settings == (("work_mem", "4MB"),)


def test_a_startup_parameter_names_the_tenant_as_options_do() -> None:
    selectors = selectors_from_startup(startup(user="app", tenant="acme", application_name="x"), None, ALL)
    reading = read(selectors, ALL)
    assert says(reading) == [("options", ("acme",))]
    assert reading.settings == (("application_name", "x"),)


def test_the_last_separator_splits_the_user_name() -> None:
    reading = read(Selectors("jane.doe.acme"), ALL)
    assert (reading.user, says(reading)) == ("jane.doe", [("user", ("acme",))])


@pytest.mark.parametrize("user", ["app", ".acme", "app.", "."])
def test_a_separator_without_two_names_is_no_suffix(user: str) -> None:
    reading = read(Selectors(user, "acme"), ALL)
    assert (reading.user, says(reading)) == (user, [("database", ("acme",))])


def test_another_separator_may_be_configured() -> None:
    rules = name_rules(user_separator="@")
    assert says(read(Selectors("j.doe@acme", "j.doe@acme"), rules)) == [("user", ("acme",))]


def test_a_database_that_is_only_the_user_name_is_silent_where_something_else_speaks() -> None:
    assert says(read(Selectors("app.acme", "app.acme"), ALL)) == [("user", ("acme",))]
    assert says(read(Selectors("app", "app", (("tenant", "acme"),)), ALL)) == [("options", ("acme",))]
    assert says(read(Selectors("acme", "acme"), ALL)) == [("database", ("acme",))]
    assert says(read(Selectors("acme"), ALL)) == [("database", ("acme",))]


def test_selectors_that_are_off_are_not_looked_at() -> None:
    rules = name_rules(order=["database"], sni_patterns=["{tenant}.db.example.com"])
    reading = read(Selectors("app.globex", "acme", (("tenant", "initech"),), "x.db.example.com"), rules)
    assert says(reading) == [("database", ("acme",))]
    assert reading.user == "app.globex"
    assert reading.settings == (("tenant", "initech"),)
    assert {one.source for one in reading.silences} == {Source.SNI, Source.OPTIONS, Source.USER}


def test_the_order_decides_which_statement_comes_first() -> None:
    rules = name_rules(order=["database", "user"])
    assert [source for source, _ in says(read(Selectors("app.globex", "acme"), rules))] == ["database", "user"]


@pytest.mark.parametrize(
    "host", ["db.example.com", "a.b.db.example.com", "acme.db.example.org", "10.0.0.1", "acmexdb.example.com"]
)
def test_other_host_names_say_nothing(host: str) -> None:
    assert says(read(Selectors("app", "acme", (), host), ALL)) == [("database", ("acme",))]


def test_two_tenants_in_the_options_are_refused_at_once() -> None:
    with pytest.raises(Failure) as caught:
        read(Selectors("app", None, (("tenant", "acme"), ("tenant", "globex"))), ALL)
    assert caught.value.sqlstate == "28000"
    assert '"acme"' in caught.value.message
    assert '"globex"' in caught.value.message


def test_options_against_the_host_name_are_refused_at_once() -> None:
    with pytest.raises(Failure) as caught:
        read(Selectors("app", None, (("tenant", "globex"),), "acme.db.example.com"), ALL)
    assert caught.value.message == (
        'the connection names two different tenants: the host name says "acme", but the options say "globex"'
    )


def test_disagreement_goes_by_spelling_only() -> None:
    def pair(user: str, database: str) -> bool:
        return disagreement(read(Selectors(user, database), ALL).statements) is not None

    assert not pair("app.acme", "acme")
    assert not pair("app.acme", "acme_data")
    assert not pair("app.acme", "db_acme")
    assert pair("app.acme", "globex")
    assert pair("app.acme", "nothing")
    assert pair("app.nobody", "globex")


def test_options_that_postgresql_would_refuse_are_refused_alike() -> None:
    with pytest.raises(Failure) as caught:
        selectors_from_startup(startup(user="app", options="nonsense"), None, ALL)
    assert caught.value.spec.name == "invalid_options"


def test_a_startup_without_user_is_refused() -> None:
    with pytest.raises(Failure) as caught:
        selectors_from_startup(startup(database="acme"), None, ALL)
    assert caught.value.spec.name == "user_missing"


@pytest.mark.parametrize("pattern", ["acme", "{tenant}", "{tenant}{tenant}", ""])
def test_patterns_need_the_placeholder_once_and_something_beside_it(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        name_rules(database_patterns=[pattern])


def test_an_unknown_or_repeated_selector_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        name_rules(order=["nonsense"])
    with pytest.raises(ValueError, match="once"):
        name_rules(order=["user", "user"])


@given(st.text(), st.none() | st.text(), st.lists(st.tuples(st.text(), st.text())), st.none() | st.text())
def test_no_names_break_the_reader(
    user: str, database: str | None, options: list[tuple[str, str]], sni: str | None
) -> None:
    try:
        reading = read(Selectors(user, database, tuple(options), sni), ALL)
    except Failure:
        return
    assert all(pair[0].lower() not in ALL.option_names for pair in reading.settings)


def test_options_show_in_no_repr() -> None:
    assert "hunter2" not in repr(Selectors("app", "acme", (("my.secret", "hunter2"),)))
    assert "hunter2" not in repr(read(Selectors("app", "acme", (("my.secret", "hunter2"),)), NameRules()))

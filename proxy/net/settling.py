"""What has to be settled before a client's backend may be given to anybody else: its settings, and its pins.

All of it happens between two transactions, outside the common path: `BackendLink.try_release` comes here only when a
client or its backend has a pin or a mark.  A question to the server is a statement of the proxy's own; what the client
sends meanwhile is held back, as while its settings are applied.

This module is compiled; it also runs interpreted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mypy_extensions import i64

from proxy.net.link_host import FAREWELL_TIME, TOLD_STATE_LEFT
from proxy.session.endings import sqlstate_of
from proxy.session.parameters import ParameterSet
from proxy.session.pins import (
    ASKABLE,
    CALLED,
    CHANGES,
    KEPT,
    LEFT_BY_CLIENT,
    MARKS,
    PIN_DOUBT,
    PIN_LOAD,
    PIN_PIPELINE,
    PIN_PREPARE,
    PIN_ROLE,
    PIN_SESSION,
    PIN_SET,
    PIN_SET_CONFIG,
    PIN_STATEMENT,
    PIN_UNNAMED,
    POLICY_ALLOW,
    POLICY_REJECT,
    RESET_ALL,
    ROLES_CHANGED,
    ROLLED_BACK,
    TO_CHECK,
    TO_RESET,
    UNSETTLED,
    pin_names,
)
from proxy.session.replies import BackState
from proxy.session.set_statements import (
    LAST_RESET,
    TOUCH_RESET,
    TOUCH_SET,
    TouchedSettings,
    has_block_that_sets,
    is_safe_text,
)
from proxy.session.tracked import (
    Inquiry,
    first_row,
    followed,
    inquire,
    inquire_restoring,
    restored_names,
    spread_reset,
    told_in_passing,
)

if TYPE_CHECKING:
    from proxy.net.backend_link import BackendLink
    from proxy.net.client_link import ClientLink

_STAYS: Final = PIN_SET | PIN_SET_CONFIG | PIN_LOAD | PIN_STATEMENT | PIN_UNNAMED | PIN_DOUBT | PIN_SESSION
"""The pins that no answer of the server takes away."""
MAX_ATTEMPTS: Final = 5
"""How often a question is asked that is cancelled."""
_FIXED: Final = (b"session_authorization", b"is_superuser")
"""Reported parameters that change with the role."""
_NEVER_SET: Final = (b"in_hot_standby", b"server_version", b"server_encoding", b"integer_datetimes")
"""Reported parameters that no session sets."""


def keeps(backend: BackendLink, client: ClientLink) -> bool:
    """Say whether a client that has pins or marks keeps its backend, if only until the server has answered a question.

    The transaction is over and everything is answered.
    """
    state, front = backend.state, client.front
    _tell_roles(backend, client)
    _digest(backend, client)
    if state.pins & PIN_PIPELINE:
        # A question would come into a transaction that may be open; it is asked when that is over.
        return True
    sticky = front.texts.sticky & ~MARKS
    if client.pool.state_policy == POLICY_ALLOW and not front.pins & PIN_SESSION:
        front.pins &= ~LEFT_BY_CLIENT
        state.pins &= ~LEFT_BY_CLIENT
        sticky &= ~LEFT_BY_CLIENT
    pins = front.pins | state.pins
    touched = front.touched
    if touched is None and not pins & (PIN_SET | PIN_SET_CONFIG):
        # What was set within the transaction is over.
        _become(client, client.parameters)
    check = pins & TO_CHECK != 0
    front.pins &= ~TO_CHECK
    state.pins &= ~(TO_CHECK | ROLLED_BACK)
    asked = pins & ASKABLE if check else pins & ASKABLE & ~front.proven
    if asked & PIN_PREPARE:
        # What an EXECUTE leaves behind has shown itself in no text.
        asked |= ASKABLE
    if touched is not None:
        spread_reset(touched, client.startup, client.parameters)
        _weigh_reports(backend, touched)
    staying = pins & (_STAYS | sticky)
    if check and staying == PIN_STATEMENT:
        # SQL may have deallocated them, and executed them before.
        asked |= ASKABLE | PIN_STATEMENT
        staying = 0
    if staying or (pins & ASKABLE and not asked):
        names = [] if touched is None or pins & PIN_DOUBT else restored_names(touched, client.startup)
        if names:
            _ask(backend, client, inquire_restoring(names, client.startup))
        elif pins & PIN_SESSION:
            front.touched = None
            front.pins &= ~UNSETTLED
        elif touched is not None:
            touched.doubtful = False
        return True
    if touched is None and not asked:
        return False
    if touched is None:
        touched = TouchedSettings()
        front.touched = touched
    reported = _reported(state)
    inquiry = inquire(touched, asked, client.startup, reported, backend.entry.pool.role)
    if inquiry.statement:
        _ask(backend, client, inquiry)
        return True
    _settle(backend, client, inquiry, {name: reported[name] for name in touched.names})
    return (front.pins | state.pins) & ~MARKS != 0


def _tell_roles(backend: BackendLink, client: ClientLink) -> None:
    """Say that roles have been changed, whose verifiers the node may remember."""
    state = backend.state
    if state.pins & ROLES_CHANGED:
        state.pins &= ~ROLES_CHANGED
        client.host.roles_changed(backend)


def stays(backend: BackendLink, client: ClientLink) -> None:
    """Note why a client keeps its backend, or end its session for that where the tenant's policy says so."""
    pins = (client.front.pins | backend.state.pins) & ~MARKS
    if pins != client.counted_pins:
        client.host.pins_changed(client, pins)
    if pins & LEFT_BY_CLIENT and client.pool.state_policy == POLICY_REJECT:
        client.finish(
            client.host.farewell(client, TOLD_STATE_LEFT, ", ".join(pin_names(pins & LEFT_BY_CLIENT))),
            "it left state in its session",
            client.selector.now + FAREWELL_TIME,
        )


def restore(backend: BackendLink, client: ClientLink) -> None:
    """Give a client inside a transaction those of its startup parameters back that it has reset there."""
    state, front = backend.state, client.front
    if state.open_batch or state.copy_in or state.doubt or state.skipping or state.left or front.left:
        return
    if state.pins & PIN_PIPELINE:
        # The Sync behind the question might commit what the client has not.
        return
    _digest(backend, client)
    touched = front.touched
    if touched is None:
        return
    spread_reset(touched, client.startup, client.parameters)
    _weigh_reports(backend, touched)
    names = restored_names(touched, client.startup)
    touched.open |= touched.taken
    if names:
        inquiry = inquire_restoring(names, client.startup)
        inquiry.within_transaction = True
        _ask(backend, client, inquiry)


def discarded(backend: BackendLink, client: ClientLink) -> None:
    """Forget all that a client had in its session: DISCARD ALL has succeeded, with nothing asked behind it."""
    state, front = backend.state, client.front
    state.discarded = False
    state.pins = 0
    front.pins &= PIN_SESSION
    front.texts.forget()
    front.proven = 0
    state.before.clear()
    backend.applied = backend.plain
    _become(client, backend.plain)
    front.touched = TouchedSettings()
    front.touched.reset_all()
    front.pins |= UNSETTLED


def answered(backend: BackendLink, client: ClientLink) -> None:
    """Take up the server's answer to a question."""
    inquiry = backend.inquiry
    assert inquiry is not None
    backend.inquiry = None
    state, front = backend.state, client.front
    error = state.swallowed_error
    state.swallowed_error = b""
    passing = told_in_passing(inquiry.answer)
    if passing:
        client.write(passing)
    if error and _asks_again(backend, client, inquiry, error):
        return
    row = None if error else first_row(inquiry.answer)
    touched = front.touched
    if inquiry.only_restores:
        if row is None and not inquiry.within_transaction:
            front.pins |= PIN_SET
        if touched is not None:
            for name in inquiry.restored:
                touched.names[name] = TOUCH_SET
            if not inquiry.within_transaction:
                touched.taken.clear()
                touched.open.clear()
                touched.doubtful = False
        return
    if row is None or len(row) != len(inquiry.names) + len(inquiry.facts):
        # It stays as it is, and pinned.
        front.pins |= PIN_SET if front.pins & UNSETTLED else 0
        front.pins &= ~UNSETTLED
        front.proven |= sum(inquiry.facts)
        front.touched = None
        return
    values = dict(zip(inquiry.names, row, strict=False))
    reported = _reported(state)
    if touched is not None:
        for name in touched.names:
            if name not in values:
                values[name] = reported.get(name)
    _take_facts(backend, client, inquiry.facts, row[len(inquiry.names) :])
    _settle(backend, client, inquiry, values)


def _take_facts(backend: BackendLink, client: ClientLink, facts: list[int], answers: list[bytes | None]) -> None:
    state, front = backend.state, client.front
    for pin, answer in zip(facts, answers, strict=True):
        if answer == b"t":
            front.pins |= pin
            front.proven |= pin
        else:
            front.pins &= ~pin
            front.proven &= ~pin
            state.pins &= ~pin
            if pin == PIN_STATEMENT:
                front.names = None


def _asks_again(backend: BackendLink, client: ClientLink, inquiry: Inquiry, error: bytes) -> bool:
    """Repeat a question that took longer than the client's own `statement_timeout` allows, unless it is hopeless."""
    cancelled = sqlstate_of(error, 5, len(error)) == b"57014"
    if not cancelled or inquiry.within_transaction or inquiry.attempts == MAX_ATTEMPTS:
        return False
    inquiry.attempts += 1
    inquiry.answer.clear()
    _ask(backend, client, inquiry)
    return True


def _ask(backend: BackendLink, client: ClientLink, inquiry: Inquiry) -> None:
    backend.inquiry = inquiry
    if inquiry.within_transaction or client.front.pins & PIN_UNNAMED:
        backend.ask_gently(inquiry.statement)
    else:
        backend.run_own(inquiry.statement)


def _settle(backend: BackendLink, client: ClientLink, inquiry: Inquiry, values: dict[bytes, bytes | None]) -> None:
    """Let the client's settings be what the server says they are."""
    front = client.front
    touched = front.touched
    front.touched = None
    front.pins &= ~UNSETTLED
    if touched is None or not touched.names:
        return
    encoding = backend.state.params.get(b"client_encoding", b"")
    try:
        for value in values.values():
            if value is not None and not value.isascii() and encoding != b"UTF8":
                raise ValueError("a value in an encoding that is not the proxy's")
        pairs = followed(touched, inquiry, values, client.startup, client.parameters)
        parameters = backend.host.intern(pairs)
    except ValueError:
        front.pins |= PIN_SET
        return
    _become(client, parameters)
    backend.applied = parameters


def _become(client: ClientLink, parameters: ParameterSet) -> None:
    client.parameters = parameters
    client.front.desk.meaning = parameters.meaning
    client.front.desk.shifted = False


def _digest(backend: BackendLink, client: ClientLink) -> None:
    """Read what the texts and the server's reports say of settings that have changed."""
    state, front = backend.state, client.front
    changes: i64 = (state.pins | (front.pins & CALLED)) & CHANGES
    if changes == 0:
        front.texts.kept.clear()
        front.pins &= ~KEPT
        return
    touched = front.touched
    if touched is None:
        touched = TouchedSettings()
    touched.doubtful = touched.doubtful or state.pins & ROLLED_BACK != 0
    state.has_set = False
    _read_notes(state, client, touched)
    if state.pins & RESET_ALL:
        touched.reset_all()
    if front.pins & PIN_SET and touched.everything and not touched.doubtful and not state.pins & PIN_SET:
        # What could not be read may have been a role, which RESET ALL does not take away.
        front.pins = (front.pins & ~PIN_SET) | PIN_ROLE
        front.proven &= ~PIN_ROLE
    _take_reports(state, touched)
    front.texts.kept.clear()
    front.pins &= ~(KEPT | CALLED)
    state.pins &= ~(CHANGES | RESET_ALL | ROLLED_BACK)
    if touched.role:
        front.pins |= PIN_ROLE
        front.proven &= ~PIN_ROLE
        touched.role = False
    if touched.unreadable:
        front.pins |= PIN_SET
        touched.unreadable = False
    if touched.names or touched.everything:
        front.touched = touched
        front.pins |= UNSETTLED


def _read_notes(state: BackState, client: ClientLink, touched: TouchedSettings) -> None:
    """Read the texts kept; a tag without any text that could have caused it comes from one that cannot be read."""
    encoding = b"" if b"client_encoding" in state.before else state.params.get(b"client_encoding", b"")
    name = b"standard_conforming_strings"
    standard = (
        state.params.get(name) == b"on"
        and name not in state.before
        and name not in touched.names
        and name not in client.parameters.values
    )
    before = touched.statements
    only_calls = not state.pins & (PIN_SET | TO_RESET)
    for text in client.front.texts.kept:
        if is_safe_text(text, b"" if b"client_encoding" in touched.names else encoding):
            touched.read(text, standard_strings=standard, only_calls=only_calls)
        elif not only_calls or b"set_config" in text.lower() or has_block_that_sets(text):
            touched.unreadable = True
    unexplained = state.pins & PIN_SET or (state.pins & TO_RESET and not state.pins & RESET_ALL)
    if touched.statements == before and unexplained:
        touched.unreadable = True


def _take_reports(state: BackState, touched: TouchedSettings) -> None:
    """Note the parameters that the server reports with another value than before, whatever has changed them."""
    for name, before in state.before.items():
        key = name.lower()
        if state.params.get(name) == before or key in _NEVER_SET or key in touched.names:
            continue
        if key in _FIXED:
            touched.role = True
        else:
            touched.add(key, TOUCH_RESET | LAST_RESET if touched.everything else TOUCH_SET)
    state.before.clear()


def _weigh_reports(backend: BackendLink, touched: TouchedSettings) -> None:
    """Tell the parameters that were reset from those that something unseen has set since, by what is reported."""
    for name, value in _reported(backend.state).items():
        if touched.names.get(name, 0) & TOUCH_RESET and backend.defaults.get(name) != value:
            touched.names[name] = TOUCH_SET


def _reported(state: BackState) -> dict[bytes, bytes]:
    return {name.lower(): value for name, value in state.params.items()}

"""The key that a client's proof shows, and what may be done with it."""

from __future__ import annotations

import pytest

from proxy.auth import (
    ClientKey,
    ClientKeys,
    KeyOutdated,
    ScramClient,
    ScramServer,
    ScramVerifier,
    UntrustedServer,
    WrongPassword,
    build_verifier,
    derive_keys,
)

SALT = b"0123456789abcdef"
VERIFIER = build_verifier("correct horse", SALT, 3)
OTHER = build_verifier("battery staple", SALT, 3)
APP = (1, "app")


def shown(password: str, verifier: ScramVerifier) -> ClientKey:
    client, server = ScramClient(password, b"c" * 18), ScramServer(verifier, b"s" * 18)
    client.verify(server.step(client.respond(server.start("SCRAM-SHA-256", client.first()))))
    return ClientKey(verifier, server.client_key)


def test_a_proof_shows_the_clients_key() -> None:
    assert shown("correct horse", VERIFIER).key == derive_keys("correct horse", SALT, 3).client_key


def test_a_failed_proof_shows_nothing() -> None:
    client, server = ScramClient("guess", b"c" * 18), ScramServer(VERIFIER, b"s" * 18)
    proof = client.respond(server.start("SCRAM-SHA-256", client.first()))
    with pytest.raises(WrongPassword):
        server.step(proof)
    assert server.client_key == b""


def test_the_key_logs_in_where_the_same_verifier_is() -> None:
    key = shown("correct horse", VERIFIER)
    client, server = ScramClient("", b"d" * 18, derive=key.derive), ScramServer(VERIFIER, b"t" * 18)
    client.verify(server.step(client.respond(server.start("SCRAM-SHA-256", client.first()))))
    assert client.done and server.done


@pytest.mark.parametrize(
    "changed", [build_verifier("correct horse", SALT, 4), build_verifier("correct horse", SALT[::-1], 3)]
)
def test_the_key_says_itself_that_the_verifier_is_another_one(changed: ScramVerifier) -> None:
    key = shown("correct horse", VERIFIER)
    client, server = ScramClient("", b"d" * 18, derive=key.derive), ScramServer(changed, b"t" * 18)
    with pytest.raises(KeyOutdated):
        client.respond(server.start("SCRAM-SHA-256", client.first()))


def test_a_server_that_does_not_know_the_verifier_is_not_trusted() -> None:
    key = shown("correct horse", VERIFIER)
    client = ScramClient("", b"d" * 18, derive=key.derive)
    server = ScramServer(VERIFIER, b"t" * 18)
    client.respond(server.start("SCRAM-SHA-256", client.first()))
    with pytest.raises(UntrustedServer):
        client.verify(b"v=" + b"A" * 43 + b"=")


def test_neither_key_nor_verifier_shows_in_a_repr() -> None:
    key = shown("correct horse", VERIFIER)
    assert repr(key) == "ClientKey()"


def test_another_verifier_is_another_serial_number() -> None:
    keys = ClientKeys()
    first = keys.keep(APP, ClientKey(VERIFIER, b"k"))
    assert keys.keep(APP, ClientKey(VERIFIER, b"k")) == first
    second = keys.keep(APP, ClientKey(OTHER, b"l"))
    assert second != first
    assert keys.find(APP, first) is None
    found = keys.find(APP, second)
    assert found is not None
    assert found.key == b"l"


def test_a_key_that_was_refused_is_forgotten_and_its_successor_is_not() -> None:
    keys = ClientKeys()
    first = keys.keep(APP, ClientKey(VERIFIER, b"k"))
    second = keys.keep(APP, ClientKey(OTHER, b"l"))
    keys.drop(APP, first)
    assert keys.find(APP, second) is not None
    keys.drop(APP, second)
    assert keys.find(APP, second) is None


@pytest.mark.parametrize(("verifier", "left"), [(VERIFIER, 1), (OTHER, 0), (None, 0)])
def test_a_verifier_that_has_changed_or_gone_outdates_the_key(verifier: ScramVerifier | None, left: int) -> None:
    keys = ClientKeys()
    keys.keep(APP, ClientKey(VERIFIER, b"k"))
    keys.outdate(APP, verifier)
    keys.outdate((2, "app"), None)
    assert len(keys) == left


def test_a_tenant_without_clients_leaves_no_key_behind() -> None:
    keys = ClientKeys()
    owners = ((1, "app"), (1, "ann"), (2, "app"))
    serials = [keys.keep(owner, ClientKey(VERIFIER, b"k")) for owner in owners]
    keys.forget_tenant(1)
    keys.forget_tenant(3)
    assert len(keys) == 1
    assert keys.find((2, "app"), serials[-1]) is not None
    keys.forget_tenant(2)
    assert len(keys) == 0


def test_the_keys_longest_unused_are_dropped() -> None:
    keys = ClientKeys(limit=2)
    serials = [keys.keep((tenant, "app"), ClientKey(VERIFIER, b"k")) for tenant in (1, 2)]
    assert keys.find((1, "app"), serials[0]) is not None
    keys.keep((3, "app"), ClientKey(VERIFIER, b"k"))
    assert keys.find((2, "app"), serials[1]) is None
    assert keys.find((1, "app"), serials[0]) is not None
    assert len(keys) == 2

"""`pgtenant secrets`: the keys that seal what the registry must not show."""

from __future__ import annotations

import secrets
from typing import Annotated

import typer

from registry.commands.options import (
    ConfigOption,
    JsonOption,
    PasswordEnv,
    PasswordFile,
    PasswordStdin,
    RegistryOption,
    read_secret,
)
from registry.commands.output import ask, explained, note, print_json
from registry.secrets import KEYS_VARIABLE
from registry.secrets import generate_key as make_key
from registry.service import new_password
from registry.verifiers import SALT_SIZE, build_verifier, check_password


def register(app: typer.Typer) -> None:
    """Mount the group."""
    group = typer.Typer(no_args_is_help=True, help="The keys that seal passwords in the registry, and verifiers.")
    group.command("generate-key")(generate_key)
    group.command("rotate")(rotate)
    group.command("verifier")(verifier)
    app.add_typer(group, name="secrets")


def generate_key(
    key_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Name of the key. (default: `k` and something random)")
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Make an encryption key for PGTENANT_ENCRYPTION_KEYS.  Keep it: without it the registry's secrets are lost.

    export PGTENANT_ENCRYPTION_KEYS=$(pgtenant secrets generate-key)
    """
    with explained():
        key = make_key(key_id or f"k{secrets.token_hex(3)}")
    if as_json:
        print_json({"variable": KEYS_VARIABLE, "key": key})
    else:
        typer.echo(key)


def rotate(registry: RegistryOption = None, config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """Seal all secrets with the first key, of registry.encryption_keys_file or else of PGTENANT_ENCRYPTION_KEYS.

    Put a new key in front of the old one, in the file of each node, and reload the nodes (SIGHUP); run this with the
    same file (--config); take the old key out and reload once more.  Keys in the environment need restarts instead.
    """
    done, total = ask(registry, config, lambda opened: opened.service.rotate_keys(), writing=True)
    if as_json:
        print_json({"sealed_anew": done, "secrets": total})
    else:
        note(f"sealed {done} of {total} secrets anew" if done else f"all {total} secrets have the first key already")


def verifier(
    password_file: PasswordFile = None,
    password_env: PasswordEnv = None,
    *,
    password_stdin: PasswordStdin = False,
    as_json: JsonOption = False,
) -> None:
    """Make the SCRAM verifier of a password, for `console.admins` and `console.stats`.  Nothing is kept.

    Without a password one is made and printed too.

    pgtenant secrets verifier --password-stdin
    """
    with explained():
        given = read_secret("password", file=password_file, variable=password_env, stdin=password_stdin)
        password = given or new_password()
        made = build_verifier(check_password(password.reveal()), secrets.token_bytes(SALT_SIZE))
    if as_json:
        print_json({"verifier": made} if given else {"verifier": made, "password": password.reveal()})
        return
    if given is None:
        note(f"password, which is not shown again: {password.reveal()}")
    typer.echo(made)

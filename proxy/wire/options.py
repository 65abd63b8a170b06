"""The `options` parameter of a StartupMessage: a server's command line, `-c name=value --name=value`.

Source: PostgreSQL's `pg_split_opts`, `process_postgres_switches` and `ParseLongOption`; documented at libpq's
`options` parameter and at the `postgres` command.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Final

from proxy.wire.errors import StartupOptionError

# What isspace() accepts in the C locale, which is narrower than str.isspace().
_SPACE: Final = " \t\n\v\f\r"

# Switches without an argument, and the setting each one makes; None: accepted and without effect in a session.
_FLAGS: Final[Mapping[str, tuple[str, str] | None]] = MappingProxyType(
    {
        "b": None,
        "E": None,
        "j": None,
        "n": None,
        "T": None,
        "e": ("datestyle", "euro"),
        "F": ("fsync", "false"),
        "i": ("listen_addresses", "*"),
        "l": ("ssl", "true"),
        "O": ("allow_system_table_mods", "true"),
        "P": ("ignore_system_indexes", "true"),
        "s": ("log_statement_stats", "true"),
    }
)

# Switches with an argument, and the setting that takes it; None as above.
_VALUED: Final[Mapping[str, str | None]] = MappingProxyType(
    {
        "C": None,
        "D": None,
        "r": None,
        "v": None,
        "B": "shared_buffers",
        "h": "listen_addresses",
        "k": "unix_socket_directories",
        "N": "max_connections",
        "p": "port",
        "S": "work_mem",
        "W": "post_auth_delay",
    }
)

_PLANS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "s": "enable_seqscan",
        "i": "enable_indexscan",
        "o": "enable_indexonlyscan",
        "b": "enable_bitmapscan",
        "t": "enable_tidscan",
        "n": "enable_nestloop",
        "m": "enable_mergejoin",
        "h": "enable_hashjoin",
    }
)

# By the first letters of the argument, as PostgreSQL looks at no more.
_STATISTICS: Final[Mapping[str, str]] = MappingProxyType(
    {"pa": "log_parser_stats", "pl": "log_planner_stats", "e": "log_executor_stats"}
)

_SHOWN: Final = 64


def parse_startup_options(options: str, bare: Collection[str] = ()) -> tuple[tuple[str, str], ...]:
    """Turn command-line switches into settings, in their order; a later one of the same name wins.

    Names come as the client spelled them, but with `_` for `-`.  Words `name=value` without a switch, which
    PostgreSQL would refuse, are taken too where the name is in `bare`.

    Raises StartupOptionError for whatever PostgreSQL's own parser would refuse; whether a setting exists and may
    be set is for the server to say.
    """
    arguments = split_startup_options(options)
    settings: list[tuple[str, str]] = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if len(argument) < 2 or argument[0] != "-":
            settings.append(_bare_word(argument, bare))
            continue
        if argument == "--":
            if position < len(arguments):
                raise _refused(arguments[position])
            break
        position += _read_cluster(argument, arguments[position : position + 1], settings)
    return tuple(settings)


def split_startup_options(options: str) -> list[str]:
    """Split at unescaped white space; a backslash takes the next character as it is."""
    words: list[str] = []
    position = 0
    while True:
        while position < len(options) and options[position] in _SPACE:
            position += 1
        if position == len(options):
            return words
        word: list[str] = []
        escaped = False
        while position < len(options) and (escaped or options[position] not in _SPACE):
            if options[position] == "\\" and not escaped:
                escaped = True
            else:
                escaped = False
                word.append(options[position])
            position += 1
        words.append("".join(word))


def _read_cluster(argument: str, following: list[str], settings: list[tuple[str, str]]) -> int:
    """Read the switches of one argument (`-eFc name=value`); returns how many of `following` it used."""
    for index, switch in enumerate(argument[1:], start=1):
        if switch in _FLAGS:
            setting = _FLAGS[switch]
            if setting is not None:
                settings.append(setting)
            continue
        attached = argument[index + 1 :]
        value = attached or next(iter(following), None)
        if value is None:
            raise _refused(argument)
        settings.extend(_valued_switch(switch, value, argument))
        return 0 if attached else 1
    return 0


def _valued_switch(switch: str, value: str, argument: str) -> list[tuple[str, str]]:
    if switch in {"c", "-"}:
        return [_long_option(switch, value)]
    if switch in _VALUED:
        name = _VALUED[switch]
        return [] if name is None else [(name, value)]
    if switch == "d":
        return _debug_settings(value)
    if switch == "f" and value[:1] in _PLANS:
        return [(_PLANS[value[0]], "false")]
    if switch == "t":
        name = next((name for prefix, name in _STATISTICS.items() if value.startswith(prefix)), None)
        if name is not None:
            return [(name, "true")]
    raise _refused(argument)


def _long_option(switch: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        shown = f"--{text}" if switch == "-" else f"-c {text}"
        raise StartupOptionError(f"{_cut(shown)} requires a value", _cut(shown))
    return name.replace("-", "_"), value


def _debug_settings(value: str) -> list[tuple[str, str]]:
    digits = re.match(r"[ \t\n\v\f\r]*\+?([0-9]{1,3})", value)
    level = int(digits[1]) if digits else 0
    settings = [("log_min_messages", f"debug{level}" if level > 0 else "notice")]
    for least, name, setting in (
        (2, "log_statement", "all"),
        (3, "debug_print_parse", "true"),
        (4, "debug_print_plan", "true"),
        (5, "debug_print_rewritten", "true"),
    ):
        if level >= least:
            settings.append((name, setting))
    return settings


def _bare_word(word: str, bare: Collection[str]) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals or name not in bare:
        raise _refused(word)
    return name, value


def _refused(argument: str) -> StartupOptionError:
    shown = _cut(argument)
    return StartupOptionError(f"invalid command-line argument for server process: {shown}", shown)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."

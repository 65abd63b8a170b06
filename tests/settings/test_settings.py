"""Settings: where they come from, and what is said of those that cannot be used."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from harness.references import ROOT, errors_page

from proxy.admin.console import Right
from proxy.auth import build_verifier
from proxy.settings import Settings, SettingsError, admin_token, load_settings, needs_restart
from proxy.settings.reference import settings_reference
from proxy.wiring import console_rules


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "pgtenant.toml"
    path.write_text(text)
    return path


def test_the_reference_in_configs_is_in_step_with_the_models() -> None:
    assert (ROOT / "configs" / "pgtenant.toml").read_text() == settings_reference()


def test_the_reference_has_every_setting_and_loads_as_the_defaults(tmp_path: Path) -> None:
    text = settings_reference()
    assert load_settings(written(tmp_path, text), {}) == Settings()
    assert tomllib.loads(text).keys() == Settings.model_fields.keys()
    for section in Settings.model_fields:
        for name in type(getattr(Settings(), section)).model_fields:
            assert re.search(rf"^(# )?{name} = ", text, re.MULTILINE), f"{section}.{name} is missing"


def test_the_reference_shows_values_for_settings_without_a_default_that_load(tmp_path: Path) -> None:
    text = re.sub(r"^# (\w+ = )", r"\1", settings_reference(), flags=re.MULTILINE)
    settings = load_settings(written(tmp_path, text), {})
    assert settings.routing.shared_tenant == "shared"
    assert settings.listen.tls_cert is not None


def test_the_page_of_errors_is_in_step_with_the_table() -> None:
    assert (ROOT / "docs" / "errors.md").read_text() == errors_page()


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "[pool]\npool_size = 7\n[listen]\nport = 1000\n")
    settings = load_settings(path, {"PGTENANT_POOL__POOL_SIZE": "9", "PGTENANT_ROUTING__ORDER": "user,database"})
    assert (settings.pool.pool_size, settings.listen.port) == (9, 1000)
    assert settings.routing.order == ("user", "database")


def test_variables_of_other_purposes_are_no_settings() -> None:
    assert load_settings(None, {"PGTENANT_ENCRYPTION_KEYS": "x", "PGTENANT_CONFIG": "y"}) == Settings()


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("[pool]\npol_size = 3\n", "there is no setting pool.pol_size", "pool_size"),
        ("[pol]\nx = 3\n", "there is no setting pol", "pool"),
        ("[listen]\nport = 70000\n", "listen.port", "configs/pgtenant.toml"),
        ("[listen]\nport = 'many'\n", "listen.port", "configs/pgtenant.toml"),
        ("[pool]\npool_size = 50\nmax_backends = 10\n", "pool_size (50) is above max_backends (10)", "explains"),
        ("[listen]\ntls_mode = 'require'\n", "needs tls_cert and tls_key", "explains"),
        ("[listen]\ntls_client_crl = 'a.crl'\n", "tls_client_crl needs tls_client_ca", "explains"),
        ("[listen]\nport = '6432'\n", "listen.port", "configs/pgtenant.toml"),
        ("[listen]\nport = true\n", "listen.port", "configs/pgtenant.toml"),
        ("[listen]\ntrust = 1\n", "listen.trust", "configs/pgtenant.toml"),
        ("[pool]\nconnect_timeout = nan\n", "pool.connect_timeout", "configs/pgtenant.toml"),
        ("[pool]\nretry_first = 30\n", "retry_first (30) is above retry_most (15)", "explains"),
        ("[routing]\norder = []\n", "routing.order", "configs/pgtenant.toml"),
        ("[http]\nadmin_token = ''\n", "http.admin_token", "configs/pgtenant.toml"),
        ("pool = 3\n", "pool is a section", "[pool]"),
        ("[pool\n", "is not TOML", "configs/pgtenant.toml"),
    ],
)
def test_what_cannot_be_used_is_named_with_a_hint(tmp_path: Path, text: str, said: str, hint: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        load_settings(path, {})
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("variable", "value", "said", "hint"),
    [
        ("PGTENANT_POOL__POL_SIZE", "3", "there is no setting pool.pol_size", "pool_size"),
        ("PGTENANT_POL__POOL_SIZE", "3", "there is no setting pol", "pool"),
        ("PGTENANT_POOL__POOL_SIZE", "many", "pool.pool_size", "explains"),
        ("PGTENANT_LISTEN__TRUST", "perhaps", "listen.trust", "explains"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(
    tmp_path: Path, variable: str, value: str, said: str, hint: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(written(tmp_path, "[listen]\nport = 1000\n"), {variable: value})
    assert f"environment variable {variable}: " in str(caught.value)
    assert said in str(caught.value)
    assert hint in caught.value.hint


def test_variables_are_read_as_the_kind_of_value_that_the_setting_has() -> None:
    settings = load_settings(
        None,
        {
            "PGTENANT_LISTEN__TRUST": "true",
            "PGTENANT_POOL__LINGER": "2.5",
            "PGTENANT_LISTEN__TLS_CERT": "/x/y.pem",
            "PGTENANT_ROUTING__SNI_PATTERNS": "{tenant}.a.example, {tenant}.b.example",
            "PGTENANT_HTTP__ADMIN_TOKEN": "12345",
        },
    )
    assert (settings.listen.trust, settings.pool.linger, settings.listen.tls_cert) == (True, 2.5, Path("/x/y.pem"))
    assert settings.routing.sni_patterns == ("{tenant}.a.example", "{tenant}.b.example")
    assert admin_token(settings) == "12345"


def test_the_registry_may_stand_in_a_variable_of_its_own_whatever_the_file_says(tmp_path: Path) -> None:
    path = written(tmp_path, "[registry]\nurl = 'sqlite:///file.db'\n")
    settings = load_settings(path, {"PGTENANT_REGISTRY": "postgresql://u:pa55@h/db"})
    assert settings.registry.url.get_secret_value() == "postgresql://u:pa55@h/db"
    assert "pa55" not in repr(settings)
    with pytest.raises(SettingsError, match="registry is a section"):
        load_settings(written(tmp_path, "registry = 3\n"), {"PGTENANT_REGISTRY": "sqlite:///x.db"})


def test_the_consoles_users_have_verifiers_that_are_shown_nowhere(tmp_path: Path) -> None:
    verifier = build_verifier("right", bytes(16)).text()
    settings = load_settings(None, {"PGTENANT_CONSOLE__ADMINS": f"ann={verifier}, bob={verifier}"})
    rules = console_rules(settings)
    assert rules is not None
    assert {user.name: user.right for user in rules.users.values()} == {"ann": Right.ORDER, "bob": Right.ORDER}
    assert verifier not in repr(rules) + repr(settings) + settings.model_dump_json()
    assert console_rules(Settings()) is None


@pytest.mark.parametrize("text", ["hunter2", '{"ann": "hunter2"}', "ann:hunter2=", "ann=x, hunter2 hunter2=x"])
def test_a_secret_in_place_of_a_console_users_name_is_not_shown(text: str) -> None:
    with pytest.raises(SettingsError, match=r"PGTENANT_CONSOLE__ADMINS: console\.admins: ") as refused:
        load_settings(None, {"PGTENANT_CONSOLE__ADMINS": text})
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[console]\nadmins = { ann = 'a-password' }\n", r"console\.admins\.ann"),
        ("[console]\nadmins = { ann = 'x' }\nstats = { ann = 'x' }\n", 'user "ann" is both'),
        ("[console]\nadmins = { '' = 'x' }\n", "console.admins"),
    ],
)
def test_what_is_no_user_of_the_console_is_named_without_its_secret(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        console_rules(load_settings(written(tmp_path, text), {}))
    assert "a-password" not in str(refused.value)


def test_a_token_file_without_a_token_is_named(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("\n")
    settings = load_settings(written(tmp_path, f"[http]\nadmin_token_file = '{token}'\n"), {})
    with pytest.raises(SettingsError, match="no token"):
        admin_token(settings)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.toml"):
        load_settings(tmp_path / "nowhere.toml", {})


def test_the_admin_token_is_the_first_line_of_its_file_and_in_no_repr(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("abc-123\nmore\n")
    settings = load_settings(written(tmp_path, f"[http]\nadmin_token_file = '{token}'\n"), {})
    assert admin_token(settings) == "abc-123"
    inline = load_settings(written(tmp_path, "[http]\nadmin_token = 'hidden-word'\n"), {})
    assert admin_token(inline) == "hidden-word"
    assert "hidden-word" not in repr(inline)


def test_a_token_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, f"[http]\nadmin_token_file = '{tmp_path / 'gone'}'\n"), {})
    with pytest.raises(SettingsError, match="gone"):
        admin_token(settings)


def test_every_setting_says_whether_it_needs_a_restart() -> None:
    for section in Settings.model_fields:
        for field in type(getattr(Settings(), section)).model_fields.values():
            assert needs_restart(field) in {True, False}

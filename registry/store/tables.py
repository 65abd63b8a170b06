"""The tables, as SQLAlchemy describes them; the migrations in `migrations/` make them."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

NAMING: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

metadata: Final = sa.MetaData(naming_convention=NAMING)

# The row lock of the one row makes versions commit-ordered.  `pruned` is the newest version that may be missing in
# the change log.
clock: Final = sa.Table(
    "clock",
    metadata,
    sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1", name="one_row"), primary_key=True, autoincrement=False),
    sa.Column("v", sa.BigInteger, nullable=False),
    sa.Column("pruned", sa.BigInteger, nullable=False),
)

change_log: Final = sa.Table(
    "change_log",
    metadata,
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("key", sa.Integer),
)

# Ids are never used again: they are in caches, in logs and in what binds a sealed secret to its row.
servers: Final = sa.Table(
    "servers",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(63), nullable=False, unique=True),
    sa.Column("addresses", sa.JSON, nullable=False),
    sa.Column("tls_mode", sa.String(16), nullable=False),
    sa.Column("tls_ca", sa.Text),
    sa.Column("tls_cert", sa.Text),
    sa.Column("tls_key", sa.LargeBinary),
    sa.Column("tls_negotiation", sa.String(16), nullable=False),
    sa.Column("tls_min_version", sa.String(16), nullable=False),
    sa.Column("protocol", sa.String(16), nullable=False),
    sa.Column("admin_user", sa.String(63)),
    sa.Column("admin_password", sa.LargeBinary),
    sa.Column("role_user", sa.String(63)),
    sa.Column("role_password", sa.LargeBinary),
    sa.Column("auth_user", sa.String(63)),
    sa.Column("auth_password", sa.LargeBinary),
    sa.Column("auth_database", sa.String(63)),
    sa.Column("auth_query", sa.Text),
    sa.Column("channel_binding", sa.String(16), nullable=False),
    sa.Column("max_connections", sa.Integer, nullable=False),
    sa.Column("reserve", sa.Integer, nullable=False),
    sa.Column("draining", sa.Boolean, nullable=False),
    sa.Column("health", sa.String(16), nullable=False),
    sqlite_autoincrement=True,
)

tenants: Final = sa.Table(
    "tenants",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("slug", sa.String(63), nullable=False, unique=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("server_id", sa.Integer, sa.ForeignKey("servers.id"), index=True),
    sa.Column("database_name", sa.String(63), index=True),
    sa.Column("role_user", sa.String(63)),
    sa.Column("role_password", sa.LargeBinary),
    sa.Column("pool_size", sa.Integer),
    sa.Column("min_pool_size", sa.Integer),
    sa.Column("max_clients", sa.Integer),
    sa.Column("max_waiting", sa.Integer),
    sa.Column("weight", sa.Integer),
    sa.Column("queue_wait_timeout", sa.Float),
    sa.Column("server_idle_timeout", sa.Float),
    sa.Column("server_lifetime", sa.Float),
    sa.Column("query_timeout", sa.Float),
    sa.Column("transaction_timeout", sa.Float),
    sa.Column("idle_transaction_timeout", sa.Float),
    sa.Column("client_idle_timeout", sa.Float),
    sa.Column("login_timeout", sa.Float),
    sa.Column("connect_timeout", sa.Float),
    sa.Column("pool_mode", sa.String(16), nullable=False),
    sa.Column("reset", sa.String(16), nullable=False),
    sa.Column("session_state", sa.String(16), nullable=False),
    sa.Column("verifiers", sa.String(16)),
    sa.Column("networks", sa.JSON, nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("shared", sa.Boolean, nullable=False, server_default=sa.false()),
    sqlite_autoincrement=True,
)

# Slugs and aliases in one table: no name may stand for two tenants.
tenant_names: Final = sa.Table(
    "tenant_names",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("tenant_id", sa.Integer, sa.ForeignKey("tenants.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("is_slug", sa.Boolean, nullable=False),
)

logins: Final = sa.Table(
    "logins",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("user_name", sa.String(63), nullable=False),
    sa.Column("tenant_id", sa.Integer, sa.ForeignKey("tenants.id", ondelete="CASCADE"), index=True),
    sa.Column("verifier", sa.Text, nullable=False),
    sa.Column("methods", sa.String(64), nullable=False),
    sa.Column("certificate", sa.String(512)),
    sa.Column("role_user", sa.String(63)),
    sa.Column("role_password", sa.LargeBinary),
    sa.Column("replication", sa.String(16), nullable=False),
    sa.UniqueConstraint("user_name", "tenant_id"),
    sqlite_autoincrement=True,
)

# A unique constraint takes every NULL for another value.
sa.Index(
    "uq_logins_user_name_all_tenants",
    logins.c.user_name,
    unique=True,
    sqlite_where=logins.c.tenant_id.is_(None),
    postgresql_where=logins.c.tenant_id.is_(None),
)

login_md5: Final = sa.Table(
    "login_md5",
    metadata,
    sa.Column("login_id", sa.Integer, sa.ForeignKey("logins.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("spelling", sa.String(128), primary_key=True),
    sa.Column("hash", sa.LargeBinary, nullable=False),
)

registry_secrets: Final = sa.Table(
    "registry_secrets",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)

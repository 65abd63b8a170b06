"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make all tables, with the clock at 1."""
    clock = op.create_table(
        "clock",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("v", sa.BigInteger(), nullable=False),
        sa.Column("pruned", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("id = 1", name="one_row"),
        sa.PrimaryKeyConstraint("id", name="pk_clock"),
    )
    op.bulk_insert(clock, [{"id": 1, "v": 1, "pruned": 1}])
    op.create_table(
        "change_log",
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("key", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("version", "seq", name="pk_change_log"),
    )
    op.create_table(
        "registry_secrets",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_registry_secrets"),
    )
    _make_servers()
    _make_tenants()
    _make_logins()


def downgrade() -> None:
    """Drop all tables."""
    for table in (
        "login_md5",
        "logins",
        "tenant_names",
        "tenants",
        "servers",
        "registry_secrets",
        "change_log",
        "clock",
    ):
        op.drop_table(table)


def _make_servers() -> None:
    op.create_table(
        "servers",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("addresses", sa.JSON(), nullable=False),
        sa.Column("tls_mode", sa.String(16), nullable=False),
        sa.Column("tls_ca", sa.Text(), nullable=True),
        sa.Column("tls_cert", sa.Text(), nullable=True),
        sa.Column("tls_key", sa.LargeBinary(), nullable=True),
        sa.Column("tls_negotiation", sa.String(16), nullable=False),
        sa.Column("tls_min_version", sa.String(16), nullable=False),
        sa.Column("protocol", sa.String(16), nullable=False),
        sa.Column("admin_user", sa.String(63), nullable=True),
        sa.Column("admin_password", sa.LargeBinary(), nullable=True),
        sa.Column("role_user", sa.String(63), nullable=True),
        sa.Column("role_password", sa.LargeBinary(), nullable=True),
        sa.Column("auth_user", sa.String(63), nullable=True),
        sa.Column("auth_password", sa.LargeBinary(), nullable=True),
        sa.Column("auth_database", sa.String(63), nullable=True),
        sa.Column("auth_query", sa.Text(), nullable=True),
        sa.Column("channel_binding", sa.String(16), nullable=False),
        sa.Column("max_connections", sa.Integer(), nullable=False),
        sa.Column("reserve", sa.Integer(), nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.Column("health", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_servers"),
        sa.UniqueConstraint("name", name="uq_servers_name"),
        sqlite_autoincrement=True,
    )


def _make_tenants() -> None:
    op.create_table(
        "tenants",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("slug", sa.String(63), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("server_id", sa.Integer(), nullable=True),
        sa.Column("database_name", sa.String(63), nullable=True),
        sa.Column("role_user", sa.String(63), nullable=True),
        sa.Column("role_password", sa.LargeBinary(), nullable=True),
        sa.Column("pool_size", sa.Integer(), nullable=True),
        sa.Column("min_pool_size", sa.Integer(), nullable=True),
        sa.Column("max_clients", sa.Integer(), nullable=True),
        sa.Column("max_waiting", sa.Integer(), nullable=True),
        sa.Column("weight", sa.Integer(), nullable=True),
        sa.Column("queue_wait_timeout", sa.Float(), nullable=True),
        sa.Column("server_idle_timeout", sa.Float(), nullable=True),
        sa.Column("server_lifetime", sa.Float(), nullable=True),
        sa.Column("query_timeout", sa.Float(), nullable=True),
        sa.Column("transaction_timeout", sa.Float(), nullable=True),
        sa.Column("idle_transaction_timeout", sa.Float(), nullable=True),
        sa.Column("client_idle_timeout", sa.Float(), nullable=True),
        sa.Column("login_timeout", sa.Float(), nullable=True),
        sa.Column("connect_timeout", sa.Float(), nullable=True),
        sa.Column("pool_mode", sa.String(16), nullable=False),
        sa.Column("reset", sa.String(16), nullable=False),
        sa.Column("session_state", sa.String(16), nullable=False),
        sa.Column("verifiers", sa.String(16), nullable=True),
        sa.Column("networks", sa.JSON(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tenants"),
        sa.UniqueConstraint("slug", name="uq_tenants_slug"),
        sa.ForeignKeyConstraint(["server_id"], ["servers.id"], name="fk_tenants_server_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_tenants_server_id", "tenants", ["server_id"])
    op.create_index("ix_tenants_database_name", "tenants", ["database_name"])
    op.create_table(
        "tenant_names",
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("is_slug", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_tenant_names"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_tenant_names_tenant_id", ondelete="CASCADE"),
    )
    op.create_index("ix_tenant_names_tenant_id", "tenant_names", ["tenant_id"])


def _make_logins() -> None:
    op.create_table(
        "logins",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("user_name", sa.String(63), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=True),
        sa.Column("verifier", sa.Text(), nullable=False),
        sa.Column("methods", sa.String(64), nullable=False),
        sa.Column("certificate", sa.String(512), nullable=True),
        sa.Column("role_user", sa.String(63), nullable=True),
        sa.Column("role_password", sa.LargeBinary(), nullable=True),
        sa.Column("replication", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_logins"),
        sa.UniqueConstraint("user_name", "tenant_id", name="uq_logins_user_name_tenant_id"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_logins_tenant_id", ondelete="CASCADE"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_logins_tenant_id", "logins", ["tenant_id"])
    op.create_index(
        "uq_logins_user_name_all_tenants",
        "logins",
        ["user_name"],
        unique=True,
        sqlite_where=sa.text("tenant_id IS NULL"),
        postgresql_where=sa.text("tenant_id IS NULL"),
    )
    op.create_table(
        "login_md5",
        sa.Column("login_id", sa.Integer(), nullable=False),
        sa.Column("spelling", sa.String(128), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("login_id", "spelling", name="pk_login_md5"),
        sa.ForeignKeyConstraint(["login_id"], ["logins.id"], name="fk_login_md5_login_id", ondelete="CASCADE"),
    )

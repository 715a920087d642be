"""The first tables, and the clock at nought."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

DIGEST = sa.String(64)
NODE = sa.String(100)
NUMBER = sa.Float(53)


def upgrade() -> None:
    """Forwards."""
    clock = op.create_table(
        "clock",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("event", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clock")),
    )
    op.bulk_insert(clock, [{"id": 1, "event": 0}])
    op.create_table(
        "events",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(100), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("happened", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_events")),
    )
    _models()
    _aliases()
    _lineage()


def _models() -> None:
    op.create_table(
        "bases",
        sa.Column("id", DIGEST, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("modules", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bases")),
    )
    op.create_table(
        "adapters",
        sa.Column("id", DIGEST, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("modules", sa.Integer(), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.Column("rank_low", sa.Integer(), nullable=False),
        sa.Column("rank_high", sa.Integer(), nullable=False),
        sa.Column("dtypes", sa.JSON(), nullable=False),
        sa.Column("created", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapters")),
    )
    op.create_table(
        "versions",
        sa.Column("id", DIGEST, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("base_id", DIGEST, nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("created", NUMBER, nullable=False),
        sa.ForeignKeyConstraint(["base_id"], ["bases.id"], name=op.f("fk_versions_base_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_versions")),
        sa.UniqueConstraint("number", name=op.f("uq_versions_number")),
    )
    op.create_index(op.f("ix_versions_base_id"), "versions", ["base_id"])
    op.create_table(
        "version_adapters",
        sa.Column("version_id", DIGEST, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("adapter_id", DIGEST, nullable=False),
        sa.Column("weight", NUMBER, nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name=op.f("fk_version_adapters_adapter_id")),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_version_adapters_version_id")),
        sa.PrimaryKeyConstraint("version_id", "position", name=op.f("pk_version_adapters")),
    )
    op.create_index(op.f("ix_version_adapters_adapter_id"), "version_adapters", ["adapter_id"])


def _aliases() -> None:
    op.create_table(
        "aliases",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("version_id", DIGEST, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_aliases_version_id")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_aliases")),
    )
    op.create_index(op.f("ix_aliases_version_id"), "aliases", ["version_id"])
    op.create_table(
        "alias_moves",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("alias", sa.String(64), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("previous_id", DIGEST, nullable=True),
        sa.Column("version_id", DIGEST, nullable=False),
        sa.Column("restores", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("moved", NUMBER, nullable=False),
        sa.ForeignKeyConstraint(["previous_id"], ["versions.id"], name=op.f("fk_alias_moves_previous_id")),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_alias_moves_version_id")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_alias_moves")),
        sa.UniqueConstraint("alias", "revision", name=op.f("uq_alias_moves_alias")),
    )
    op.create_index(op.f("ix_alias_moves_previous_id"), "alias_moves", ["previous_id"])
    op.create_index(op.f("ix_alias_moves_version_id"), "alias_moves", ["version_id"])


def _lineage() -> None:
    op.create_table(
        "nodes",
        sa.Column("id", NODE, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_nodes")),
    )
    op.create_index(op.f("ix_nodes_kind"), "nodes", ["kind"])
    op.create_table(
        "edges",
        sa.Column("node_id", NODE, nullable=False),
        sa.Column("relation", sa.String(32), nullable=False),
        sa.Column("source_id", NODE, nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_edges_node_id")),
        sa.ForeignKeyConstraint(["source_id"], ["nodes.id"], name=op.f("fk_edges_source_id")),
        sa.PrimaryKeyConstraint("node_id", "relation", "source_id", name=op.f("pk_edges")),
    )
    op.create_index("ix_edges_source", "edges", ["source_id"])

"""What Alembic runs: the migrations, within the transaction of the connection that it is given."""

from alembic import context

from services.registry.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
context.run_migrations()

"""The schema's history. `services.registry.database.Database` brings a database up to date when it is opened."""

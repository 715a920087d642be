"""The registry: immutable versions of models, their lineage, and the aliases that point at them."""

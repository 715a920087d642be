"""Painting: model families, limits, regional averaging, sampling. Knows no service."""

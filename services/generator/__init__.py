"""Paints pictures."""

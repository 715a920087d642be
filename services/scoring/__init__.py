"""Scores pictures."""

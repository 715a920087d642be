"""Trains one adapter for each kept pair."""

"""Vista: the built-in miniature world and the small models trained on it."""

"""Training recipes of the Vista models. Reads the world's ground truth; no stage of a run may import it."""

"""The independent detector and judge, and the figures they give. For evaluation only; no stage of a run may import it."""

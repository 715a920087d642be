"""Model files: where a model lies (`references`, `hub`), which version it is, how large it is, adapters as bytes, loaded models."""

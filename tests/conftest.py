"""Shared by all tests: sfumato is imported before any test module imports transformers or diffusers by itself."""

import sfumato as sfumato

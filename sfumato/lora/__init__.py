"""LoRA adapters: exact algebra on their factors, files that load everywhere, fusing from pristine weights."""

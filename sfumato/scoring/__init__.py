"""What scorers and their callers share: the networks, and what two scores say of a preference."""

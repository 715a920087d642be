"""How tasks reach workers: `local` with processes on this machine, `jetstream` over NATS with workers anywhere."""

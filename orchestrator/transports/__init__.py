"""Transports of tasks to workers: `local` to processes on this machine, `jetstream` over NATS to workers on any machine."""

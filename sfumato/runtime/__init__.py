"""The runtime of all programs: settings, tasks, artifacts, the bus, model files, serving and calling over gRPC, logs and metrics."""

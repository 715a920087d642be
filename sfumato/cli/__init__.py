"""The command line, and the one place where library, services and orchestrator are wired together."""

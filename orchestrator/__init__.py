"""The orchestrator: recipes as data and small pure functions, the engine that runs them, the transport to the services."""

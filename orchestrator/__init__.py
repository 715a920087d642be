"""The orchestrator: recipes as data and pure functions, the engine that executes them, and the transports to the services."""

"""The engine that executes a recipe. It is independent of methods and services.

    stages      what a recipe is made of: stages, loops, phases, and how a stage reports
    engine      passes the stages: micro-batches, barriers, loops
    transport   how tasks reach workers, as a protocol; the implementations are in `orchestrator.transports`
    rows        rows in a temporary file, for samples that are too many to hold in memory
"""

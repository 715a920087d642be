"""What every caller of the orchestrator needs; the orchestrator itself is a program of its own.

    records    how a run stands, what happens in it, what it asks a person, how it ended
    messages   records to messages of the contract and back
    client     an orchestrator behind one or several addresses
"""

"""What everybody knows of the registry: its data, its contract's messages, and a client. The registry itself is a service.

    records    versions, lineage, aliases, events, and how things get their ids
    messages   records to messages of the contract and back
    bases      the linears of a base model
    models     what can be asked of a registry, wherever it is
    client     the registry behind an address
"""

"""The caller's side of the registry: its data, its messages, and a client. The registry itself is `services.registry`.

    records    versions, lineage, aliases, events, and their ids
    messages   conversion between records and protobuf messages
    bases      the linear layers of a base model
    models     the registry's interface, which engine and client share
    client     a client of the registry's service
"""

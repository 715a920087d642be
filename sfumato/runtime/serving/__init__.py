"""The one way to answer over gRPC: a lane for each engine, a boundary around every call, a server with health and reflection.

    boundary   token, rules of the contract, errors to status          status      which error is which status
    lane       an engine's thread and queue                             images      pictures of messages to arrays and back
    server     listens, loads, says how it is, drains                   models      the adapters of a message's model
    artifacts  the artifact store for callers who share no disk
"""

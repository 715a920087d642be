"""Serving over gRPC: an engine queue per engine, a boundary around every call, a server with health and reflection.

    boundary      token, the contract's rules, errors to status       status       the table of errors and statuses
    engine_queue  an engine's thread and the calls that wait for it   images       images of messages to arrays and back
    server        listens, loads, reports health, drains              models       the adapters of a message's model
    artifacts     the artifact store for clients without its disk     observed     spans and metrics of every call
    credentials   the server's side of TLS
"""

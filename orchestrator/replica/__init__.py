"""One replica of the orchestrator: which runs it drives, and what the replicas tell each other over the bus.

    driver    takes runs that no replica drives, and executes them
    index     what the bus knows of runs: desired states, leases, events
    board     the latest events of a run, between the thread that executes it and the one that publishes
    jobs      a Kubernetes Job for each joint training
    queues    how full the work queues are, as metrics
"""

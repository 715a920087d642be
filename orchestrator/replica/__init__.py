"""One replica of the orchestrator: the runs that it drives, and the state that replicas share over the bus.

    driver    acquires runs that no replica drives, and executes them
    index     the state of runs on the bus: desired states, leases, events
    board     the latest events of a run, shared by the thread that executes it and the one that publishes
    jobs      a Kubernetes Job for each joint training
    queues    the lengths of the work queues, as metrics
"""

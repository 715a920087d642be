"""One run, local or over the bus: from a spec to its record, its execution, its files and its registered models.

    specs         reads specs and their prompts from files
    submission    a spec with its prompts, checked, as a run with an id and a record
    records       the runs on record in an artifact store
    drive         executes a run over a transport
    replay        executes a run on its stored results only, without computing anything
    reviewing     the questions that wait for a person, and their answers
    registering   registers a finished run's models
    journal       the finished stages of a run in a file
    outlook       estimates the remaining time of a run from its events
"""

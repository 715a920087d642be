"""One run, whichever way it is driven: from a spec to its record, its execution, its files and its registered models.

    specs         reads specs and their prompts from files
    submission    a spec with its prompts, checked, as a run with an id and a record
    records       the runs on record in an artifact store
    drive         executes a run over a transport
    replay        passes a run once more over what it has stored, without doing anything
    reviewing     the questions that wait for a person, and their answers
    registering   a finished run's models into the registry
    journal       the finished stages of a run in a file
    outlook       how long a run will take, from its events
"""

"""The methods, a folder each, and what they share. Adding a method is adding a folder here and a line in `catalog`.

    recipe     what a method is
    catalog    the methods by name: the one place that imports them
    spec       sections of a run spec that methods share
    inputs     sets of prompts that a run is given
    models     weights that a run needs, and how they are found
    plan       what a run was asked for
    tasks      tasks that several methods send: painting, scoring, questions to the VLM, training
    work       what stages cost
    lineage    what a run registers: models with all they came from
"""

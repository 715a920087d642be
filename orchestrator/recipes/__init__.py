"""The methods, one folder each, and the modules that they share. A new method is a new folder here and a line in `catalog`.

    recipe     what a method is
    catalog    the methods by name; the only module that imports them
    spec       sections of a run spec that methods share
    inputs     sets of prompts that a run is given
    models     weights that a run needs, and how they are found
    plan       spec, prompts and models of a run, for the engine
    tasks      tasks that several methods send: painting, scoring, questions to the VLM, training
    work       the costs of stages
    lineage    the models that a run registers, with their lineage
"""

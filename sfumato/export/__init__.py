"""Exports a registered version for other programs: the fused model, its adapter in every layout, a model card, a Bento's files.

    folder    writes all of it, loads each part back and compares it
    card      the model card: base, method, data, metrics, licence
    bento     a plain BentoML service around the fused model
"""

"""A registered version as files for other programs: the fused model, its adapter in every layout, a card, and what a Bento is built of.

    folder    all of it, each part loaded back and compared
    card      what is told of it: base, method, data, metrics, licence
    bento     a plain service around the fused model, and how it is built
"""

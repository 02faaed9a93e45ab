"""From a preference file to micro-batches. One module per stop, in the order in which a pair passes them:

    sources -> shapes -> rows -> template -> tokens -> table -> sampler -> packs -> loader

`dataset.py` is MiniMind's own data set class, outside this path.
"""

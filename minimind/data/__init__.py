"""From a preference file to micro-batches. One module per stop, in the order in which a pair passes them:

    sources -> shapes -> rows -> encoder -> tokens -> table -> sampler -> packs -> loader

The encoder's own path: template -> turn_markers -> turns -> control_tokens -> encoder.

`dataset.py` is MiniMind's own data set class, outside this path.
"""

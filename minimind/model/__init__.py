"""Models: MiniMind, adaptations of other families, and attention over packs."""

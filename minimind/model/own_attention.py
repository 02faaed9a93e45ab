"""Switches a model between the attention that transformers chose for it and attention over packs.

    model as transformers builds it -> AttentionSwitch.of -> packed() or own() before each forward

A class that SDPA would compute wrongly (`_supports_sdpa = False`: sinks, soft capping, a position bias in the mask) is
built with eager attention. The padded layout and the oracle need exactly this choice, so it is remembered.
"""

from __future__ import annotations

from transformers import PretrainedConfig, PreTrainedModel

from minimind.model.packed_attention import PACKED_ATTENTION

# Attribute of a model that holds its switch.
_ATTRIBUTE = "_minimind_attention_switch"


class AttentionSwitch:
    """The attention implementations that transformers chose for a model's configurations.

    Args:
        model: a model in which no other implementation was selected since it was built.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        # A composite model has a configuration for each part, and some decoders copy theirs.
        configs: dict[int, PretrainedConfig] = {}
        for module in model.modules():
            config = getattr(module, "config", None)
            if isinstance(config, PretrainedConfig):
                configs.setdefault(id(config), config)
        # Parents before children: selecting for a composite configuration overwrites that of its parts.
        self._own = tuple((config, config._attn_implementation) for config in configs.values())

    @classmethod
    def of(cls, model: PreTrainedModel) -> AttentionSwitch:
        """The switch of a model. It is kept in the model: a second one would find what the first one has selected."""
        switch = getattr(model, _ATTRIBUTE, None)
        if switch is None:
            switch = cls(model)
            setattr(model, _ATTRIBUTE, switch)
        return switch

    def packed(self) -> None:
        """Select attention over packs."""
        for config, _ in self._own:
            config._attn_implementation = PACKED_ATTENTION

    def own(self) -> None:
        """Select what transformers chose."""
        for config, implementation in self._own:
            config._attn_implementation = implementation

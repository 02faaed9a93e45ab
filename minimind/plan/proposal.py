"""Sizes, tokens and a learning rate for a number of parameters: `--params 1e9`.

    parameters, generation, mixture -> propose -> Proposal: hidden size, layers, heads, tokens, learning rate

Rules:
    shape           as near as can be to MiniMind-3's: 96 channels of the hidden size for each layer; 8 heads, in large
                    models heads of 128 channels.
                    The loss depends little on the shape (Kaplan et al., 2020, arXiv 2001.08361, section 3.1).
    tokens          20 for each parameter that a token uses (Hoffmann et al., 2022, arXiv 2203.15556, table 3). That is
                    measured on dense models; to count of a mixture what a token uses is a choice made here.
    learning rate   the script's, which is for hidden size 768, times 768 / hidden size: under Adam the best rate of
                    hidden matrices falls with the width (Yang et al., 2022, arXiv 2203.03466, table 8). A run has one
                    rate for all tensors, so embeddings and norms, whose best rate does not fall, get less than the
                    paper says: a start, and not a measured optimum.
"""

from __future__ import annotations

import dataclasses
import math

from minimind.errors import ConfigError
from minimind.model.configuration import MiniMindConfig
from minimind.weights.construction import empty_model, tensor_shapes

_ASPECT = 96
_TOKENS_PER_PARAMETER = 20
# Width that MiniMind's learning rates are for.
_WIDTH = 768
# Hidden sizes up to _WIDE are multiples of _STEP, larger ones of half of _WIDE, so that heads have _HEAD channels.
_STEP, _WIDE, _HEAD = 64, 1024, 128
# Fewest parameters that can be asked for; fewer have no layer.
_LEAST = 1e6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proposal:
    """A MiniMind model of about a number of parameters.

    Attributes:
        config: its configuration.
        parameters: of all its tensors.
        active: parameters that a token uses; fewer than `parameters` in a mixture.
    """

    config: MiniMindConfig
    parameters: int
    active: int

    @property
    def tokens(self) -> int:
        """Tokens to pretrain on."""
        return _TOKENS_PER_PARAMETER * self.active

    def learning_rate(self, base: float) -> float:
        """The rate for its width, with two digits.

        Args:
            base: that of hidden size 768.
        """
        return float(f"{base * _WIDTH / self.config.hidden_size:.1e}")

    def flags(self, base: float) -> dict[str, float | int]:
        """Flags of training that it stands for."""
        return {
            "hidden_size": self.config.hidden_size,
            "num_hidden_layers": self.config.num_hidden_layers,
            "num_attention_heads": self.config.num_attention_heads,
            "learning_rate": self.learning_rate(base),
        }

    def describe(self, base: float) -> str:
        """For people."""
        one = self.config
        experts = f", {one.num_experts} experts, {one.num_experts_per_tok} per token" if one.use_moe else ""
        return (
            f"Proposed: hidden size {one.hidden_size}, {one.num_hidden_layers} layers, "
            f"{one.num_attention_heads} heads of {one.head_dim}{experts}\n"
            f"Tokens for pretraining: {self.tokens / 1e9:.3g} B, 20 for each of {self.active / 1e9:.3g} B parameters "
            "that a token uses (Hoffmann et al., 2022)\n"
            f"Learning rate: {self.learning_rate(base):g}, the script's {base:g} of hidden size 768 x 768 / "
            f"{one.hidden_size} (Yang et al., 2022)\n"
        )


def propose(parameters: float, generation: int, use_moe: bool, vocab_size: int) -> Proposal:
    """The model of about so many parameters whose shape is nearest to MiniMind's.

    Raises:
        ConfigError: so few parameters that the embeddings leave none for layers.
    """
    if not parameters >= _LEAST or math.isinf(parameters):
        raise ConfigError(f"--params {parameters:g}: give a number of at least {_LEAST:g}")
    # 12 H^2 parameters a layer and H / 96 layers make H^3 / 8; experts and embeddings change it by less than two.
    middle = 2 * parameters ** (1 / 3)
    small, large = range(_STEP, _WIDE + 1, _STEP), range(_WIDE + _WIDE // 2, 2**17, _WIDE // 2)
    near = [hidden for hidden in (*small, *large) if middle / 3 <= hidden <= 2 * middle]
    found = [_proposal(hidden, parameters, generation, use_moe, vocab_size) for hidden in near]
    return min(found, key=lambda one: abs(math.log(one.config.hidden_size / one.config.num_hidden_layers / _ASPECT)))


def _proposal(hidden: int, parameters: float, generation: int, use_moe: bool, vocab_size: int) -> Proposal:
    """The model of a hidden size with as many layers as the parameters are enough for."""
    config = MiniMindConfig(
        generation=generation,
        hidden_size=hidden,
        # Eight heads, as in MiniMind, until they would be wider than 128.
        num_attention_heads=8 if hidden <= _WIDE else hidden // _HEAD,
        use_moe=use_moe,
        vocab_size=vocab_size,
    )
    # Two models tell the size of a layer; building all layers would take long.
    one, two = (_sizes(config, layers) for layers in (1, 2))
    layers = max(1, round(1 + (parameters - one[0]) / (two[0] - one[0])))
    total, experts = (a + (layers - 1) * (b - a) for a, b in zip(one, two, strict=True))
    idle = experts * (1 - config.num_experts_per_tok / config.num_experts)
    config.num_hidden_layers = layers
    return Proposal(config=config, parameters=total, active=round(total - idle))


def _sizes(config: MiniMindConfig, layers: int) -> tuple[int, int]:
    """Elements of all tensors, and of those of routed experts."""
    values = {**config.to_dict(), "num_hidden_layers": layers}
    shapes = tensor_shapes(empty_model(MiniMindConfig.from_dict(values)))
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    return sum(sizes.values()), sum(size for name, size in sizes.items() if ".experts." in name)

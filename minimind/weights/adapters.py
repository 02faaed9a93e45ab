"""Start values of adapters: new ones, or those of an adapter's files (`adapter_files.py`).

flags + model -> fresh_spec -> AdapterSpec -> FreshAdapter -> start values, one tensor at a time

Names are those of the parameters of a model with adapters (`model/adapters.py`).
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from minimind.config import AdapterConfig
from minimind.errors import ConfigError
from minimind.model.adapters import AdapterSpec, adapted_layer, add_adapters, find_targets
from minimind.model.text_half import freeze_other_parts
from minimind.weights.construction import empty_model
from minimind.weights.sources import WeightSource

# Values of --lora_init; and peft's others, with the reason why they are refused.
INITS = ("default", "gaussian", "orthogonal")
_MOVES = "it moves a part of the weights into the adapters, so that without them the model would not be the reference"
_READS = "it reads data before training; make the adapter with peft, and give it as --from_adapter"
OTHER_INITS: Mapping[str, str] = {
    **dict.fromkeys(("pissa", "olora", "corda", "loftq"), _MOVES),
    "lora_ga": f"{_MOVES}, and {_READS.partition(';')[0]}",
    "eva": _READS,
    "mica": "it trains one of the two matrices",
}


class AdapterSource(abc.ABC):
    """Start values of adapters.

    Attributes:
        spec: what adapters they are.
        origin: name for messages.
    """

    spec: AdapterSpec
    origin: str

    @abc.abstractmethod
    def read(self, name: str) -> Tensor:
        """The start value of a parameter, float32 on the CPU, by its name in the model with adapters."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """16 hex digits that other start values do not have."""


class FreshAdapter(AdapterSource):
    """New adapters, with peft's start values: the product of B and A is 0.

    Each matrix has its own generator, seeded with the run's seed and the layer's name. So the values are the same on
    every rank, for every number of ranks and in every order of reading.

    Args:
        base: the weights that get adapters.
        dtype: of the weights in training; DoRA starts with the length of the rounded weights' rows.
        init: peft's name of the start values.
    """

    def __init__(self, spec: AdapterSpec, base: WeightSource, seed: int, dtype: torch.dtype, init: str) -> None:
        self.spec, self.origin = spec, f"new adapters (seed {seed})"
        self._base, self._seed, self._dtype, self._init = base, seed, dtype, init
        self._shapes = adapter_shapes(base.config, spec)
        model = empty_model(base.config)
        # GPT-2's layers keep their weight as (in, out).
        self._transposed = {name for name in spec.layers if isinstance(model.get_submodule(name), Conv1D)}

    def read(self, name: str) -> Tensor:
        layer, part = adapted_layer(name)
        if part == "lora_magnitude_vector":
            weight = self._base.read(f"{layer}.weight").to(self._dtype)
            return torch.linalg.norm(weight, dim=0 if layer in self._transposed else 1).float()
        out = torch.zeros(self._shapes[name])
        generator = self._generator(name)
        if self._init == "orthogonal":
            # Half of an orthogonal matrix each, so that their product is 0.
            halves = torch.linalg.qr(torch.randn(self.spec.rank, self.spec.rank, generator=self._generator(layer)))[0]
            half = halves[0::2] if part == "lora_A" else halves[1::2]
            width = out.numel() // self.spec.rank
            spread = torch.randn(width, self.spec.rank // 2, generator=generator) @ half / 10
            return spread.T.contiguous() if part == "lora_A" else spread
        if part == "lora_A":
            if self._init == "gaussian":
                out.normal_(0.0, 1 / self.spec.rank, generator=generator)
            else:
                # As a linear layer of torch starts: uniform within 1 / sqrt(inputs).
                nn.init.kaiming_uniform_(out, a=5**0.5, generator=generator)
        return out

    def _generator(self, name: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.spec}{self._seed}{self._init}".encode()).hexdigest()[:16]


class SavedAdapter(AdapterSource):
    """An adapter from a file.

    Args:
        spec: what the file says of it.
        file: its tensors, by their names in the model with adapters.
    """

    def __init__(self, spec: AdapterSpec, origin: str, tensors: Mapping[str, Tensor]) -> None:
        self.spec, self.origin, self._tensors = spec, origin, tensors

    def read(self, name: str) -> Tensor:
        return self._tensors[name].float()

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.spec).encode())
        for name in sorted(self._tensors):
            digest.update(name.encode())
            digest.update(self.read(name).flatten().numpy().tobytes())
        return digest.hexdigest()[:16]


def adapter_shapes(config: PretrainedConfig, spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of the trained parameters of a model with these adapters."""
    model = empty_model(config)
    add_adapters(model, spec)
    return {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}


def fresh_spec(flags: AdapterConfig, config: PretrainedConfig) -> AdapterSpec:
    """What new adapters the flags ask for in a model of this configuration; --lora_rank is given.

    Raises:
        ConfigError: the targets mean nothing, or cannot have such adapters.
    """
    assert flags.lora_rank is not None
    _check_init(flags.lora_init, flags.lora_rank)
    model = empty_model(config)
    freeze_other_parts(model)
    layers, stacks = find_targets(model, flags.lora_targets)
    orthogonal = flags.lora_init == "orthogonal"
    if stacks and (flags.lora_dropout or flags.use_dora or orthogonal):
        flag = "--use_dora 1" if flags.use_dora else "--lora_init orthogonal" if orthogonal else "--lora_dropout"
        raise ConfigError(
            f"{flag}: the adapters of stacked experts ({stacks[0]}) do not have it; drop it, or give --lora_targets "
            "all-linear, which leaves the experts out"
        )
    return AdapterSpec(
        rank=flags.lora_rank,
        alpha=2.0 * flags.lora_rank if flags.lora_alpha is None else flags.lora_alpha,
        dropout=flags.lora_dropout,
        dora=flags.use_dora,
        rslora=flags.use_rslora,
        layers=layers,
        stacks=stacks,
    )


def _check_init(name: str, rank: int) -> None:
    if name not in INITS:
        # peft's `pissa_niter_4` is PiSSA too.
        reason = OTHER_INITS.get(name.partition("_niter_")[0], "peft has no such start values")
        raise ConfigError(f"--lora_init {name}: {reason}; give {', '.join(INITS)}")
    if name == "orthogonal" and rank % 2:
        raise ConfigError(f"--lora_init orthogonal needs an even --lora_rank, not {rank}")

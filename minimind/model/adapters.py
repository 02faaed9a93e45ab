"""Low-rank adapters (LoRA, Hu et al., 2021) in a model, by peft's layers.

    model, AdapterSpec -> add_adapters -> the same model: adapters train, everything else is frozen
    reference_adapters(model)          -> within it the model computes as it did before training

    x (..., in) -> W x + scaling * B A x       A (rank, in), B (out, rank)

peft replaces a layer `q_proj` by one that holds the old layer as `q_proj.base_layer`, and its matrices as
`q_proj.lora_A.default` and `q_proj.lora_B.default`. A parameter of the model keeps its name but for this insertion, see
`base_name`. Only this module knows those names.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from minimind.errors import ConfigError
from minimind.model.linear_layers import use_kernels

# Values of --lora_targets that are no names of layers.
ALL_LINEAR, EXPERTS, SQUARE = "all-linear", "experts", "square"
# Names of the adapter that trains, and of the frozen one that it started from.
TRAINED, START = "default", "start"
_PARTS = re.compile(rf"\.(lora_A|lora_B|lora_magnitude_vector)\.({TRAINED}|{START})\b")
_BASE = ".base_layer"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """What adapters a model has.

    Attributes:
        rank: rows of A and columns of B.
        alpha: adapters are multiplied by alpha / rank, with `rslora` by alpha / sqrt(rank).
        dropout: probability with which an input of A is dropped in training.
        dora: length and direction of a weight's rows change separately (Liu et al., 2024).
        rslora: rank-stabilised scaling (Kalajdzievski, 2023).
        layers: full names of the linear layers with adapters, sorted.
        stacks: full names of the stacked experts, parameters (E, out, in), with adapters, sorted.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    dora: bool = False
    rslora: bool = False
    layers: tuple[str, ...]
    stacks: tuple[str, ...] = ()

    @property
    def scaling(self) -> float:
        """Factor of the product of B and A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def targets(self) -> str:
        """Which layers and stacks, for the identity of a run: their number, and a hash of their names."""
        names = (*self.layers, *self.stacks)
        return f"{len(names)} ({hashlib.sha256(','.join(names).encode()).hexdigest()[:8]})"


def import_peft() -> Any:
    """The peft package.

    Raises:
        ConfigError: it is not installed.
    """
    # peft imports bitsandbytes where it is installed, which warns of an optional package.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import peft
    except ImportError as error:
        install = 'pip install -e ".[lora]"'
        raise ConfigError(f"adapters need peft, which cannot be imported ({error}): {install}") from error
    return peft


def peft_config(model: PreTrainedModel, spec: AdapterSpec, init: bool | str = False) -> Any:
    """peft's configuration of these adapters.

    Args:
        model: the model without adapters.
        init: how peft makes start values; False: not at all.
    """
    return import_peft().LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=list(spec.layers) or None,
        target_parameters=list(spec.stacks) or None,
        use_dora=spec.dora,
        use_rslora=spec.rslora,
        init_lora_weights=init,
        # GPT-2's layers keep their weight as (in, out).
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in spec.layers),
        task_type="CAUSAL_LM",
    )


def add_adapters(model: PreTrainedModel, spec: AdapterSpec, start: bool = False) -> None:
    """Add adapters without start values to a model, which may be partitioned by ZeRO-3; freeze everything else.

    Args:
        start: add a second, frozen adapter of the same shape, which `reference_adapters` turns on.
    """
    peft = import_peft()
    config = peft_config(model, spec)
    with _full_shapes(model):
        for name in (TRAINED, START) if start else (TRAINED,):
            peft.inject_adapter_in_model(copy.deepcopy(config), model, adapter_name=name)
    layers = adapted_layers(model)
    # peft compares endings of names, so it could find more layers than were named.
    assert len(layers) == len(spec.layers) + len(spec.stacks), "peft has adapted other layers than it was given"
    _activate(layers, TRAINED)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(adapter_of(name) == TRAINED)
    # The adapters' own matrices are torch's linear layers.
    for layer in layers:
        for matrices in (layer.lora_A, layer.lora_B):
            use_kernels(matrices)


@contextlib.contextmanager
def _full_shapes(model: nn.Module) -> Iterator[None]:
    """Show partitioned parameters in their full shapes, without memory: peft reads sizes, and DoRA norms, from them."""
    partitioned = [(p, p.data) for p in model.parameters() if hasattr(p, "ds_shape")]
    for parameter, data in partitioned:
        parameter.data = data.new_zeros(()).expand(parameter.ds_shape)
    try:
        yield
    finally:
        for parameter, data in partitioned:
            parameter.data = data


def find_targets(model: PreTrainedModel, targets: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the linear layers, and of the stacked experts, that a value of --lora_targets stands for.

    Args:
        model: the model without adapters; what is frozen in it gets none.

    Raises:
        ConfigError: nothing has such a name.
    """
    ends = {id(model.get_output_embeddings()), id(model.get_input_embeddings())}
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module) not in ends and module.weight.requires_grad
    }
    if targets == ALL_LINEAR:
        return tuple(sorted(linear)), ()
    if targets == EXPERTS:
        stacks = find_stacks(model)
        if not stacks:
            raise ConfigError(f"--lora_targets {EXPERTS}: the model has no stacked experts; give {ALL_LINEAR}")
        return tuple(sorted(linear)), stacks
    if targets == SQUARE:
        return _some([name for name, module in linear.items() if _is_square(module)], SQUARE, linear), ()
    chosen: list[str] = []
    for word in filter(None, map(str.strip, targets.split(","))):
        chosen += _some([name for name in linear if name == word or name.endswith(f".{word}")], word, linear)
    return _some(list(dict.fromkeys(chosen)), targets, linear), ()


def find_stacks(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the stacked experts, parameters (E, out, in), of a model that is not partitioned, sorted."""
    found = [name for name, p in model.named_parameters() if p.dim() == 3 and re.search(r"\.experts\.\w+$", name)]
    return tuple(sorted(found))


def _is_square(module: nn.Module) -> bool:
    rows, columns = dict(module.named_parameters())["weight"].shape
    return rows == columns


def _some(names: list[str], word: str, linear: Mapping[str, nn.Module]) -> tuple[str, ...]:
    if not names:
        known = sorted({name.rpartition(".")[2] for name in linear})
        raise ConfigError(f"--lora_targets {word!r} means no linear layer; the model's are {', '.join(known)}")
    return tuple(sorted(names))


def adapter_of(name: str) -> str | None:
    """The adapter, `TRAINED` or `START`, that a parameter of a model with adapters belongs to; None: its own weight."""
    match = _PARTS.search(name)
    return match[2] if match else None


def trained_name(name: str) -> str:
    """The name of the trained adapter's parameter that a parameter of either adapter stands beside or is."""
    match = _PARTS.search(name)
    assert match is not None, name
    return f"{name[: match.start(2)]}{TRAINED}{name[match.end(2) :]}"


def base_name(name: str) -> str:
    """The name that a parameter of a model with adapters has in the model without them."""
    return name.replace(_BASE, "")


def saved_name(name: str) -> str:
    """The name of an adapter's parameter in peft's files: without the adapter's own name."""
    match = _PARTS.search(name)
    assert match is not None, name
    # The vector of DoRA is saved under its module's name.
    rest = "" if match[1] == "lora_magnitude_vector" else name[match.end() :]
    return f"base_model.model.{name[: match.start()]}.{match[1]}{rest}"


def adapted_layer(name: str) -> tuple[str, str]:
    """The layer, as named in the model without adapters, that an adapter's parameter belongs to, and its part.

    `layers.0.q_proj.lora_A.default.weight` -> `layers.0.q_proj`, `lora_A`.
    """
    match = _PARTS.search(name)
    assert match is not None, name
    return base_name(name[: match.start()]), match[1]


@contextlib.contextmanager
def reference_adapters(model: nn.Module) -> Iterator[None]:
    """Within it the model is its own reference: with the start adapter if it has one, else without adapters.

    peft's own switches also change which parameters have gradients, which an engine has already seen.
    """
    layers = adapted_layers(model)
    start = any(START in layer.r for layer in layers)
    _activate(layers, START if start else None)
    try:
        yield
    finally:
        _activate(layers, TRAINED)


def _activate(layers: Sequence[Any], name: str | None) -> None:
    for layer in layers:
        layer._disable_adapters = name is None
        layer._active_adapter = [name or TRAINED]
        # A version of peft that reads other attributes would train against the policy itself.
        assert (layer.disable_adapters, layer.active_adapters) == (name is None, [name or TRAINED])


def adapted_layers(model: nn.Module) -> Sequence[Any]:
    """peft's layers in a model, nested ones too."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]

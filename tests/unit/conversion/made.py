"""Tiny models with the demo's vocabulary, and checkpoints and runs as training leaves them."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from minimind import MiniMindConfig, MiniMindForCausalLM, demo
from minimind.checkpoints.manifest import Manifest, fingerprint_file
from minimind.model.adapters import AdapterSpec, find_targets
from minimind.model.family import model_identity
from minimind.weights.adapters import adapter_shapes
from minimind.weights.construction import empty_model, tensor_shapes
from minimind.weights.sources import WeightSource

# Each has something in its configuration or its tensors that the others lack.
KINDS = {
    "llama": {"generation": 2},
    "llama untied, YaRN": {"generation": 2, "tie_word_embeddings": False, "inference_rope_scaling": True},
    "qwen3": {"generation": 3, "head_dim": 12},
    "qwen3 untied, YaRN": {"generation": 3, "tie_word_embeddings": False, "inference_rope_scaling": True},
    "qwen3_moe": {"generation": 3, "use_moe": True},
    "qwen3_moe top 2, YaRN": {
        "generation": 3,
        "use_moe": True,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "inference_rope_scaling": True,
    },
    "qwen3_moe not normalised": {"generation": 3, "use_moe": True, "num_experts_per_tok": 3, "norm_topk_prob": False},
}


def form_of(kind: str) -> str:
    """The value of --to."""
    return "llama" if kind.startswith("llama") else "qwen3"


def made(kind: str = "qwen3", seed: int = 0, **fields) -> MiniMindForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = MiniMindForCausalLM(MiniMindConfig(**{**sizes, **KINDS.get(kind, {}), **fields})).eval()
    # Random norms: with all of them 1, a norm under a wrong name would not be noticed.
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter.data, 0.5, 1.5)
        elif "embed" not in name:
            parameter.data.mul_(4)
    return model


def own_state(model) -> dict[str, torch.Tensor]:
    """The model's tensors, each tied one once."""
    state = model.state_dict()
    return {name: state[name] for name in tensor_shapes(model)}


class MadeSource(WeightSource):
    """The weights of a model."""

    def __init__(self, model: MiniMindForCausalLM) -> None:
        self.config, self.origin, self._state = model.config, "made", own_state(model)

    def shapes(self):
        return {name: tuple(tensor.shape) for name, tensor in self._state.items()}

    def read(self, name):
        return self._state[name]


def adapters_of(base: WeightSource, targets: str) -> tuple[AdapterSpec, dict[str, torch.Tensor]]:
    """Random adapters."""
    layers, stacks = find_targets(empty_model(base.config), targets)
    spec = AdapterSpec(rank=2, alpha=4.0, layers=layers, stacks=stacks)
    generator = torch.Generator().manual_seed(0)
    shapes = adapter_shapes(base.config, spec)
    return spec, {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_adapter_checkpoint(folder: Path, base: WeightSource, spec: AdapterSpec, state, **change) -> Path:
    """A checkpoint of a run with adapters: it has the trained ones alone."""
    known = {name: getattr(spec, name) for name in ("rank", "alpha", "dropout", "dora", "rslora", "targets")}
    identity = {"adapters": {**known, "base": "none", **change}, "start weights": base.fingerprint()}
    return _write_checkpoint(folder, base.config, state, 7, **identity)


def write_checkpoint(folder: Path, model: MiniMindForCausalLM, step: int = 7, **identity) -> Path:
    """A checkpoint of ZeRO stage 0 on one rank."""
    # A tied head is in the state a second time.
    return _write_checkpoint(folder, model.config, model.state_dict(), step, **identity)


def _write_checkpoint(folder: Path, config: MiniMindConfig, state, step: int, **identity) -> Path:
    folder.mkdir(parents=True)
    counters = {"global_steps": step, "global_samples": step, "skipped_steps": 0, "dp_world_size": 1}
    # What the engine wraps has the model as its attribute.
    module = {f"model.{name}": tensor for name, tensor in state.items()}
    torch.save({**counters, "module": module, "param_shapes": None}, folder / "mp_rank_00_model_states.pt")
    files = {path.name: fingerprint_file(path) for path in folder.iterdir()}
    known = json.loads(json.dumps({**model_identity(config), "total_steps": 9, **identity}))
    Manifest(step=step, stream={}, identity=known, batch={}, sharding={}, files=files).write(folder)
    return folder


def write_run(folder: Path, model: MiniMindForCausalLM, base: str, fingerprint: str) -> Path:
    """A run with one checkpoint and no weights yet, as after a signal."""
    write_checkpoint(folder / "checkpoints/step00000007", model, **{"start weights": fingerprint})
    (folder / "checkpoints/latest").write_text("step00000007")
    settings = {"tokenizer_path": str(demo.TOKENIZER_PATH), "save_weight": "dpo"}
    record = {
        "weights": base,
        "identity": {"start weights": fingerprint},
        "settings": {name: {"value": value, "origin": "flag"} for name, value in settings.items()},
        "versions": {"minimind": "0.1.0"},
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder

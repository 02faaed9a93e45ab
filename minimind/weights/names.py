"""Tensor names: MiniMind's own and those of this project's model.

    MiniMind:  model.layers.0.mlp.experts.3.up_proj.weight    one tensor (out, in) for each expert
    here:      model.layers.0.mlp.experts.up_proj             the experts of a layer stacked, (E, out, in)

All other names are the same. Only this module handles the difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

_EXPERT = re.compile(r"^(?P<layer>model\.layers\.\d+\.mlp\.experts)\.(?P<index>[0-9]{1,6})\.(?P<part>\w+)\.weight$")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def stacked_names(names: Iterable[str]) -> dict[str, list[str]]:
    """Each of our names -> the MiniMind names of its parts: E names in the order of the experts, else one name."""
    groups: dict[str, dict[int, str]] = {}
    for name in names:
        match = _EXPERT.match(name)
        ours, index = (f"{match['layer']}.{match['part']}", int(match["index"])) if match else (name, 0)
        groups.setdefault(ours, {})[index] = name
    # Sorted by number: sorted by name, expert 10 would come before expert 2.
    return {ours: [parts[index] for index in sorted(parts)] for ours, parts in groups.items()}


def minimind_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict -> MiniMind's: each stack (E, out, in) becomes E views (out, in), other tensors stay."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if re.search(r"\.mlp\.experts\.(gate_proj|up_proj|down_proj)$", name):
            layer, part = name.rsplit(".", 1)
            out.update({f"{layer}.{index}.{part}.weight": expert for index, expert in enumerate(tensor.unbind(0))})
        else:
            out[name] = tensor
    return out

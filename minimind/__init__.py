"""Direct Preference Optimization of MiniMind models, and of any Hugging Face causal LM, on DeepSpeed.

The names below are for use in other programs, as in MiniMind's own scripts; they need no DeepSpeed. Importing the
package registers MiniMind with transformers' Auto classes and compiles nothing. Processes that tokenise import them
when they are asked for: torch and the model would take several times as long as all else that they need.
"""

import importlib
import sys
from typing import Any

from minimind.data.worker_pool import only_tokenises, tokenises_no_longer
from minimind.version import __version__

if not only_tokenises():
    from minimind.data.dataset import DPODataset
    from minimind.data.encoder import encode_conversation
    from minimind.model.configuration import MiniMindConfig
    from minimind.model.modeling import MiniMindForCausalLM
    from minimind.objective.dpo import dpo_loss
    from minimind.objective.log_probs import logits_to_log_probs
    from minimind.weights.io import load_weights, save_weights

__all__ = [
    "DPODataset",
    "MiniMindConfig",
    "MiniMindForCausalLM",
    "__version__",
    "dpo_loss",
    "encode_conversation",
    "load_weights",
    "logits_to_log_probs",
    "save_weights",
]


def __getattr__(name: str) -> Any:
    """A name that this process has not imported yet: the main file of a program, which a process that tokenises reads
    too, may ask for it."""
    if name not in __all__ or not only_tokenises():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    tokenises_no_longer()
    return getattr(importlib.reload(sys.modules[__name__]), name)

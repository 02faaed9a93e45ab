"""Direct Preference Optimization of MiniMind models, and of any Hugging Face causal LM, on DeepSpeed.

The names below are for use in other programs, as in MiniMind's own scripts; they need no DeepSpeed. Importing the
package registers MiniMind with transformers' Auto classes and compiles nothing.
"""

from minimind.data.dataset import DPODataset
from minimind.data.encoder import encode_conversation
from minimind.model.configuration import MiniMindConfig
from minimind.model.modeling import MiniMindForCausalLM
from minimind.objective.dpo import dpo_loss
from minimind.objective.log_probs import logits_to_log_probs
from minimind.version import __version__
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

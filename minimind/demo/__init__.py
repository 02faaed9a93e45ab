"""The bundled default of `deepspeed launch/train_dpo.py`: data, tokenizer and start weights, if no others are given.

    topics.py, english.py, chinese.py -> make_data.py -> train.jsonl, eval.jsonl
                                      -> make_tokenizer.py -> tokenizer/
                                      -> make_weights.py -> start.pth

The start weights are a small model that answers simple questions in English and Chinese, often rudely. DPO on the
pairs makes its answers friendly. All files are synthetic. The scripts make_* write them again, in the order above, for
example `python -m minimind.demo.make_data`.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent

TRAIN_PATH = _FOLDER / "train.jsonl"
EVAL_PATH = _FOLDER / "eval.jsonl"
TOKENIZER_PATH = _FOLDER / "tokenizer"
WEIGHT_PATH = _FOLDER / "start.pth"

# Questions for samples before and after training. None of them is in the training data; a test checks that.
SAMPLE_PROMPTS = (
    "What do horses eat?",
    "Can you work out 5 plus 6?",
    "给我一个“吵闹”的反义词吧。",
    "五月过完了是什么？",
)

# Values in place of MiniMind's defaults, which are for models a hundred times larger.
SETTINGS = {
    "data_path": (str(TRAIN_PATH),),
    "eval_data_path": (str(EVAL_PATH),),
    "tokenizer_path": str(TOKENIZER_PATH),
    "from_weight": str(WEIGHT_PATH),
    "learning_rate": 3e-4,
    "batch_size": 8,
    "max_seq_len": 128,
    "log_interval": 5,
    "eval_interval": 10,
    "sample_prompts": "4",
    "sample_tokens": 48,
}
# The same for a run with adapters.
ADAPTER_SETTINGS = {"learning_rate": 3e-3, "merge": True}

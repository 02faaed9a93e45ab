"""The bundled default: what `deepspeed launch/train_dpo.py` trains on when nothing else is named.

    topics.py, english.py, chinese.py -> make_data.py -> train.jsonl, eval.jsonl
                                      -> make_tokenizer.py -> tokenizer/
                                      -> make_weights.py -> start.pth

A small model answers simple questions in English and Chinese, a good part of the time rudely; DPO on the
pairs makes it kind. Everything here is synthetic and can be made again, in the order above:
`python -m minimind.demo.make_data` and so on.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent

TRAIN_PATH = _FOLDER / "train.jsonl"
EVAL_PATH = _FOLDER / "eval.jsonl"
TOKENIZER_PATH = _FOLDER / "tokenizer"
WEIGHT_PATH = _FOLDER / "start.pth"

# Held-out questions for samples before and after training; a test keeps them held out.
SAMPLE_PROMPTS = (
    "What do horses eat?",
    "Can you work out 5 plus 6?",
    "给我一个“吵闹”的反义词吧。",
    "五月过完了是什么？",
)

# What the demo sets in place of MiniMind's defaults, which are made for models a hundred times larger.
SETTINGS = {
    "data_path": str(TRAIN_PATH),
    "eval_data_path": str(EVAL_PATH),
    "tokenizer_path": str(TOKENIZER_PATH),
    "from_weight": str(WEIGHT_PATH),
    "learning_rate": 3e-4,
    "batch_size": 8,
    "max_seq_len": 128,
    "log_interval": 5,
    "eval_interval": 10,
}

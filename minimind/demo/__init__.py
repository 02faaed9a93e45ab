"""The bundled default: what `deepspeed launch/train_dpo.py` trains on when nothing else is named.

    topics.py, english.py, chinese.py -> make_data.py -> train.jsonl, eval.jsonl
                                      -> make_tokenizer.py -> tokenizer/
                                      -> make_weights.py -> start.pth

A small model that answers simple questions in English and Chinese, half of the time rudely; DPO on the pairs makes it
kind. Everything here is synthetic and can be made again by `python -m minimind.demo.make_data` and so on, in the order
above.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent

TRAIN_PATH = _FOLDER / "train.jsonl"
EVAL_PATH = _FOLDER / "eval.jsonl"
TOKENIZER_PATH = _FOLDER / "tokenizer"
WEIGHT_PATH = _FOLDER / "start.pth"

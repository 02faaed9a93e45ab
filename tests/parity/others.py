"""Exported folders as programs without this project load them: logits, greedy answers, an adapter of peft.

    python others.py WITH_PEFT REQUESTS.pt RESULTS.pt      REQUESTS: folder -> {"tokens": (B, T), "prompt": text}

It runs in a process of its own, which must not import this project.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NEW_TOKENS = 12
# Logits are compared at the last positions.
KEPT = 40


@torch.no_grad()
def look_at(folder: str, tokens: torch.Tensor, prompt: str | None, with_peft: bool) -> dict:
    """What a folder computes: `logits` (B, KEPT, V) float32; of a prompt `text`, `ids` and the greedy `answer`."""
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    found = {"class": type(model).__name__, "logits": model(tokens, logits_to_keep=KEPT).logits}
    if prompt is not None:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        messages = [{"role": "user", "content": prompt}]
        found["text"] = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        found["ids"] = tokenizer(found["text"], add_special_tokens=False, return_tensors="pt").input_ids
        mask = torch.ones_like(found["ids"])
        # Nothing is said of ends: they are in the folder's generation_config.json.
        answer = model.generate(found["ids"], attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
        found["answer"] = answer[0, mask.shape[1] :]
    if with_peft:
        from peft import LoraConfig, get_peft_model

        # New adapters change nothing: B is 0.
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
        found["peft"] = adapted(tokens, logits_to_keep=KEPT).logits
    return found


if __name__ == "__main__":
    results = {
        folder: look_at(folder, wanted["tokens"], wanted["prompt"], sys.argv[1] == "1")
        for folder, wanted in torch.load(sys.argv[2], weights_only=True).items()
    }
    assert not [name for name in sys.modules if name.split(".")[0] == "minimind"]
    torch.save(results, sys.argv[3])

"""Exports compute in programs without this project what MiniMind computes: golden logits, and greedy answers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from minimind import demo
from minimind.conversion.command import export
from minimind.errors import WeightsError
from minimind.training.answers import answers
from minimind.weights.construction import model_from_tensors
from minimind.weights.sources import open_weights
from tests.conftest import REPO, SHARED
from tests.parity.others import KEPT, NEW_TOKENS
from tests.unit.conversion.made import KINDS, form_of, made

ABSOLUTE = 1e-5
GOLDEN = {"minimind2_dense": "llama", "minimind3_dense": "qwen3", "minimind3_moe": "qwen3_moe"}
CLASSES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}
PROMPT = demo.SAMPLE_PROMPTS[0]


def exported(source, to, out, *flags):
    export([str(word) for word in (source, "--to", to, "--out", out, "--check", 0, *flags)])
    return str(out)


def look_at(requests, folder):
    """What each folder computes in a process that does not know this project."""
    torch.save(requests, folder / "requests.pt")
    peft = "1" if importlib.util.find_spec("peft") else "0"
    script = REPO / "tests/parity/others.py"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, str(script), peft, "requests.pt", "results.pt"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.load(folder / "results.pt", weights_only=True)


def assert_logits(found, expected):
    torch.testing.assert_close(found["logits"], expected, rtol=0, atol=ABSOLUTE)
    if "peft" in found:
        torch.testing.assert_close(found["peft"], expected, rtol=0, atol=ABSOLUTE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every kind of tiny model, and the demo's, with what this project computes: folder -> kind, logits, answer."""
    folder, expected, requests = tmp_path_factory.mktemp("exports"), {}, {}
    for number, kind in enumerate(KINDS):
        model = made(kind)
        model.save_pretrained(folder / f"{number}")
        out = exported(
            folder / f"{number}", form_of(kind), folder / f"{number}-plain", "--tokenizer_path", demo.TOKENIZER_PATH
        )
        # YaRN's models are looked at beyond their original context of 2048 tokens.
        length = 2200 if "YaRN" in kind else 40
        tokens = torch.randint(6400, (1, length), generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            expected[out] = (kind.split()[0], model(tokens, logits_to_keep=KEPT).logits, None)
        requests[out] = {"tokens": tokens, "prompt": None}
    source = open_weights(demo.WEIGHT_PATH, {})
    tokens = torch.randint(6400, (2, 60), generator=torch.Generator().manual_seed(0))
    model = model_from_tensors(source.config, {name: source.read(name).float() for name in source.shapes()})
    out = exported(
        demo.WEIGHT_PATH, "qwen3", folder / "demo", "--dtype", "float32", "--tokenizer_path", demo.TOKENIZER_PATH
    )
    with torch.no_grad():
        expected[out] = ("qwen3", model(tokens, logits_to_keep=KEPT).logits, model)
    requests[out] = {"tokens": tokens, "prompt": PROMPT}
    for out, (architecture, tokens, logits) in golden_exports(folder).items():
        expected[out], requests[out] = (architecture, logits, None), {"tokens": tokens, "prompt": None}
    return expected, look_at(requests, folder)


def golden_exports(folder):
    """Exports of the golden models: folder -> architecture, tokens, logits; nothing where they are missing."""
    if not SHARED.is_dir():
        return {}
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder / "tokenizer")
    found = {}
    for name, architecture in GOLDEN.items():
        source, flags = SHARED / f"golden/{name}_policy.pth", ("--tokenizer_path", folder / "tokenizer")
        golden = load_file(SHARED / f"golden/{name}.safetensors")
        out = exported(source, architecture.split("_")[0], folder / name, *flags)
        found[out] = (architecture, golden["x"], golden["policy_logits_eval"][:, -KEPT:])
    return found


def test_programs_without_this_project_compute_the_same_logits(folders):
    expected, found = folders
    for folder, (architecture, logits, _) in expected.items():
        assert found[folder]["class"] == CLASSES[architecture]
        assert_logits(found[folder], logits)


def test_chat_template_and_greedy_answer_are_the_same(folders, tokenizer):
    expected, found = folders
    (folder, model), *_ = ((folder, model) for folder, (_, _, model) in expected.items() if model is not None)
    there = found[folder]
    messages = [{"role": "user", "content": PROMPT}]
    assert there["text"] == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert there["ids"].tolist() == [tokenizer(there["text"], add_special_tokens=False).input_ids]
    answer = tokenizer.decode(there["answer"], skip_special_tokens=True).strip()
    assert answer == answers(model, tokenizer, [PROMPT], NEW_TOKENS)[0]
    assert len(answer) > 3


def test_golden_models_compute_minimind_s_logits(folders, shared, tmp_path):
    """The numbers are those of MiniMind's own code."""
    expected, found = folders
    for name in GOLDEN:
        (folder,) = (one for one in expected if one.endswith(name))
        golden = load_file(shared / f"golden/{name}.safetensors")["policy_logits_eval"]
        assert_logits(found[folder], golden[:, -KEPT:])
    with pytest.raises(WeightsError, match="shared experts"):
        exported(shared / "golden/minimind2_moe_policy.pth", "llama", tmp_path / "moe")

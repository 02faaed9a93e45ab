"""Jobs over tokens take the steps of MiniMind's own loops under any ZeRO stage, and resume bit for bit.

The loop here is the plain one: rows padded, the model's own forward, torch's cross-entropy and AdamW.
"""

from __future__ import annotations

import json
import math
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import cross_entropy

from minimind import demo
from minimind.engine.summaries import tag_of
from minimind.model.configuration import MiniMindConfig
from minimind.weights.construction import model_from_tensors
from minimind.weights.sources import RandomSource, tensors
from tests.distributed.launching import launch, metrics

pytestmark = pytest.mark.distributed

RATE, EPOCHS, LENGTH = 1e-3, 2, 40
SIZES = {"hidden_size": 64, "num_hidden_layers": 2}


def sft_row(text, tokenizer):
    """Tokens, and labels where MiniMind's markers are around: those of the assistant."""
    start = tokenizer(f"{tokenizer.bos_token}assistant\n", add_special_tokens=False).input_ids
    end = tokenizer(f"{tokenizer.eos_token}\n", add_special_tokens=False).input_ids
    rendered = tokenizer.apply_chat_template(text, tokenize=False).replace("<think>\n\n</think>\n\n", "")
    tokens = tokenizer(rendered, add_special_tokens=False).input_ids
    labels, counts = [], False
    for place, token in enumerate(tokens):
        counts = counts or tokens[place - len(start) : place] == start
        labels.append(token if counts else -100)
        if tokens[place + 1 - len(end) : place + 1] == end:
            counts = False
    return tokens[:LENGTH], labels[:LENGTH]


def text_row(text, tokenizer):
    """MiniMind's row of a text: cut, between its start and its end; every token is a label."""
    ids = tokenizer(text, add_special_tokens=False, max_length=LENGTH - 2, truncation=True).input_ids
    tokens = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    return tokens, tokens


def padded(rows):
    longest = max(len(tokens) for tokens, _ in rows)
    ids = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens, _ in rows])
    labels = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows])
    return ids, labels


def plain_loop(rows, size, micro_batches, exact, moe, generation=3):
    """Loss of each step, and the weights after the last one.

    Args:
        size: rows of a micro-batch.
        micro_batches: of a global step, over all ranks.
        exact: the mean over the tokens of a step; else that of the means of its micro-batches, which is MiniMind's.
    """
    source = RandomSource(MiniMindConfig(generation=generation, use_moe=moe, **SIZES), seed=42)
    model = model_from_tensors(source.config, {name: value.float().clone() for name, value in tensors(source)})
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    groups = [rows[start : start + size] for start in range(0, len(rows), size)] * EPOCHS
    steps, losses = len(groups) // micro_batches, []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * (0.1 + 0.45 * (1 + math.cos(math.pi * (step + 1) / steps)))
        batches = [padded(group) for group in groups[step * micro_batches : (step + 1) * micro_batches]]
        counts = [int((labels[:, 1:] != -100).sum()) for _, labels in batches]
        total = 0.0
        for (ids, labels), count in zip(batches, counts, strict=True):
            # A row's last token predicts nothing. MiniMind reads it all the same, which only its router's loss notices.
            out = model(ids[:, :-1])
            loss = cross_entropy(out.logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
            total += float(loss.detach()) * count / sum(counts)
            weight = count / sum(counts) if exact else 1 / micro_batches
            ((loss + (out.aux_loss if moe else 0)) * weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses, model.state_dict()


def conversations(tokenizer, moe):
    """Sixteen rows; for a mixture all equally long, because MiniMind's auxiliary loss also counts padding."""
    found = [json.loads(line)["chosen"] for line in demo.TRAIN_PATH.read_text(encoding="utf-8").splitlines()]
    if moe:
        by_length = {}
        for row in found:
            by_length.setdefault(len(sft_row(row, tokenizer)[0]), []).append(row)
        found = max(by_length.values(), key=len)
    return found[:16]


def run(folder, data, moe, *flags, script, ranks, config):
    launch(
        *(script, "--deepspeed", f"ds_configs/{config}.json", "--data_path", data, "--eval_data_path", data),
        *("--tokenizer_path", demo.TOKENIZER_PATH, "--from_weight", "none", "--generation", 3, "--use_moe", int(moe)),
        *(part for name, value in SIZES.items() for part in (f"--{name}", value)),
        *("--empty_think_ratio", 0) if "sft" in script else (),
        *("--dtype", "float32", "--save_dtype", "float32", "--learning_rate", RATE, "--max_seq_len", LENGTH),
        *("--epochs", EPOCHS, "--shuffle", 0, "--log_interval", 1, "--save_interval", 2, "--save_dir", folder, *flags),
        ranks=ranks,
    ).succeeded()


def check(folder, name, expected, moe):
    losses, state = expected
    steps = metrics(folder)
    assert [entry[f"{name}_loss"] for entry in steps] == pytest.approx(losses, rel=2e-5)
    for entry in steps:
        assert entry["perplexity"] == pytest.approx(math.exp(entry[f"{name}_loss"]))
    weights = {"sft": "full_sft"}.get(name, name)
    trained = torch.load(folder / f"{weights}_64{'_moe' if moe else ''}.pth", weights_only=True)
    for tensor in ("model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"):
        difference = (trained[tensor] - state[tensor]).norm() / state[tensor].norm()
        assert difference < 1e-4, f"{tensor} is off by {difference:.2e}"
    # The first evaluation is that of the start weights over all rows, the last one that of the trained ones.
    first, last = (metrics(folder, "eval/loss")[place] for place in (0, -1))
    assert first["eval/loss"] > last["eval/loss"]
    assert 0 <= last["eval/token_accuracy"] <= 1


SAMPLES = ("--sample_prompts", 2, "--sample_tokens", 4)


def sampled(folder):
    """Answers to the first and to the last held-out row, at each step with samples."""
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def untimed(folder):
    """All logged metrics but times, rates and memory."""
    return [
        {name: value for name, value in entry.items() if not re.search("^time/|^mfu$|per_second|memory_gib$", name)}
        for entry in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    ]


@pytest.mark.parametrize(
    ("moe", "ranks", "config", "exact"),
    [(False, 1, "zero0", False), (True, 2, "zero2", False), (False, 2, "zero3", True)],
    ids=["dense", "moe", "exact"],
)
def test_sft_is_minimind_s(moe, ranks, config, exact, tokenizer, tmp_path):
    found = conversations(tokenizer, moe)
    data, folder = tmp_path / "rows.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps({"conversations": row}) + "\n" for row in found), encoding="utf-8")
    options = {"script": "launch/train_sft.py", "ranks": ranks, "config": config}
    split = ("--batch_size", 2, "--accumulation_steps", 4 // ranks)
    split += ("--loss_mean", "tokens" if exact else "micro_batch")
    run(folder, data, moe, *split, **options)
    rows = [sft_row(row, tokenizer) for row in found]
    check(folder, "sft", plain_loop(rows, 2, 4, exact, moe), moe)
    if not exact:
        return
    # The checkpoint of step 2 leads to the same steps.
    was = untimed(folder)
    shutil.rmtree(folder / "checkpoints" / "step00000004")
    run(folder, data, moe, *split, "--from_resume", 1, "--on_bad_checkpoint", "previous", **options)
    assert untimed(folder) == was


@pytest.mark.parametrize(
    ("moe", "generation", "ranks", "config"),
    [(False, 3, 1, "zero1"), (True, 2, 2, "zero3"), (True, 3, 1, "zero2")],
    ids=["dense", "moe of generation 2", "moe of generation 3"],
)
def test_pretraining_is_minimind_s(moe, generation, ranks, config, tokenizer, tmp_path):
    lines = demo.TRAIN_PATH.read_text(encoding="utf-8").splitlines()
    texts = [" ".join(message["content"] for message in json.loads(line)["chosen"]) for line in lines[:48]]
    if moe:
        # All longer than the limit, so that no row is padded.
        texts = ["".join(texts[place : place + 3]) for place in range(0, 48, 3)]
    texts = texts[:16]
    rows = [text_row(text, tokenizer) for text in texts]
    assert not moe or {len(tokens) for tokens, _ in rows} == {LENGTH}
    data, folder = tmp_path / "rows.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    split = ("--batch_size", 2, "--accumulation_steps", 4 // ranks, "--loss_mean", "micro_batch")
    # A mixture of generation 2 has one auxiliary loss a row. The plain loop takes no samples: they change nothing.
    more = ("--on_long_row", "keep", "--generation", generation, *SAMPLES)
    run(folder, data, moe, *split, *more, script="launch/pretrain.py", ranks=ranks, config=config)
    check(folder, "pretrain", plain_loop(rows, 2, 4, False, moe, generation), moe)
    answers = sampled(folder)
    assert [one["step"] for one in answers] == [0, 0, 4, 4]
    for answer, text in zip(answers, (texts[0], texts[-1]), strict=False):
        # Without the start token; the last character may be cut.
        assert text.startswith(answer["prompt"].rstrip("\ufffd"))
        assert len(answer["prompt"]) > 5


def adapted(data, folder, *more, ranks):
    return launch(
        *("launch/train_sft.py", "--deepspeed", "ds_configs/zero2.json", "--data_path", data, "--eval_data_path", data),
        *("--from_weight", demo.WEIGHT_PATH, "--tokenizer_path", demo.TOKENIZER_PATH, "--lora_rank", 4),
        *("--learning_rate", 1e-2, "--dtype", "float32", "--max_seq_len", 64, "--log_interval", 1),
        *("--save_interval", 2, "--save_dir", folder, *SAMPLES, *more),
        ranks=ranks,
    ).succeeded()


def test_adapters_of_conversations_go_on_on_fewer_ranks(tokenizer, tmp_path):
    """LoRA, a kill after step 3, resuming on one rank, samples, and TensorBoard, in two launches."""
    data, whole, resumed = tmp_path / "rows.jsonl", tmp_path / "whole", tmp_path / "resumed"
    found = conversations(tokenizer, moe=False)
    data.write_text("".join(json.dumps({"conversations": row}) + "\n" for row in found), encoding="utf-8")
    adapted(data, whole, "--batch_size", 2, "--accumulation_steps", 2, ranks=2)
    assert not (whole / "full_sft_96.pth").exists()
    adapter = load_file(whole / "lora_full_sft_96/adapter_model.safetensors")
    assert any(bool(tensor.any()) for name, tensor in adapter.items() if "lora_B" in name)
    first, last = (metrics(whole, "eval/loss")[place]["eval/loss"] for place in (0, -1))
    assert last < first
    answers = sampled(whole)
    for answer, row in zip(answers, (found[0], found[-1]), strict=False):
        # The last row has a system message too, whose control tokens are not shown.
        assert answer["prompt"] in (row[0]["content"], f"system\n{row[0]['content']}\nuser\n{row[1]['content']}")
        assert answer["expected"] == row[-1]["content"]
    assert [one["step"] for one in answers] == [0, 0, 4, 4]
    events = EventAccumulator(str(whole / "tensorboard" / "whole"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {tag_of(name) for name in ("sft_loss", "perplexity", "token_accuracy", "eval/perplexity")} <= tags, tags

    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints/step00000004")
    (resumed / "checkpoints/latest").write_text("step00000002")
    done = adapted(data, resumed, "--from_resume", 1, ranks=1)
    assert "resuming after step 2, resharded: 2 ranks" in done.output
    names = ("step", "loss", "perplexity", "token_accuracy", "grad_norm", "learning_rate")
    curves = [[[entry[name] for name in names] for entry in metrics(folder)] for folder in (whole, resumed)]
    for now, was in zip(*curves, strict=True):
        assert now == pytest.approx(was, rel=1e-4)
    # Those of the start are known; the last ones are given again.
    again = sampled(resumed)
    assert [(one["step"], one["start"]) for one in again] == [(one["step"], one["start"]) for one in answers]


# Compiling takes each rank half a minute.
@pytest.mark.long
@pytest.mark.parametrize("script", ["launch/pretrain.py", "launch/train_sft.py"])
def test_a_compiled_run_takes_the_same_steps_and_resumes(script, tokenizer, tmp_path):
    data = tmp_path / "rows.jsonl"
    rows = [
        {"conversations": row} if "sft" in script else {"text": row[-1]["content"] * 3}
        for row in conversations(tokenizer, moe=False)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = {"script": script, "ranks": 1, "config": "zero1"}
    split = ("--batch_size", 2, "--accumulation_steps", 2)
    run(tmp_path / "plain", data, False, *split, **options)
    run(tmp_path / "compiled", data, False, *split, "--use_compile", 1, **options)
    losses = [[entry["loss"] for entry in metrics(tmp_path / name)] for name in ("plain", "compiled")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    was = untimed(tmp_path / "compiled")
    last = max((tmp_path / "compiled/checkpoints").glob("step*"))
    shutil.rmtree(last)
    more = ("--use_compile", 1, "--from_resume", 1, "--on_bad_checkpoint", "previous")
    run(tmp_path / "compiled", data, False, *split, *more, **options)
    assert untimed(tmp_path / "compiled") == was

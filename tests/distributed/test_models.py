"""Families that cannot be packed, and a composite model, take the steps of a plain loop over the model's own forward.

The plain loop knows nothing of packs, padding, engines and shards: transformers' model, single rows, torch's AdamW.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from minimind import demo
from minimind.data.sources import open_source
from minimind.data.table import PreferencePair
from minimind.data.table_cache import load_table
from tests.distributed.launching import metrics, train
from tests.parity.families import tiny_config, tiny_model

pytestmark = pytest.mark.distributed

PAIRS, LENGTH, GLOBAL_BATCH, BETA, RATE = 12, 96, 4, 0.1, 1e-3
# Model type -> DeepSpeed file, what the run says about the model.
FAMILIES = {
    # Its position bias is part of a mask that SDPA would take for the whole mask: a token then sees later ones.
    "bloom": ("zero3", "rows are padded, not packed: BloomForCausalLM does not use transformers' attention interface"),
    # Attention sinks.
    "gpt_oss": ("zero3", "rows are padded, not packed: its attention takes 's_aux', which packs do not support"),
    # Published with a vision tower; packed.
    "gemma3": ("zero3", "frozen, because a text does not reach it: model.vision_tower (48 tensors)"),
    # Dropout, which is turned off.
    "gpt2": ("zero2", "dropout of the model is turned off (--dropout 1 keeps it): attn_pdrop 0.1, embd_pdrop 0.1"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    lines = demo.TRAIN_PATH.read_text(encoding="utf-8").splitlines(keepends=True)[:PAIRS]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def save_model(model_type: str, folder) -> PreTrainedModel:
    config = tiny_config(model_type)
    config.get_text_config().vocab_size = 6400  # of the demo's tokenizer
    model = tiny_model(config)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(demo.TOKENIZER_PATH).save_pretrained(folder)
    return model


def arguments(start, data, out) -> list[object]:
    flags = {
        "from_weight": start, "data_path": data, "max_seq_len": LENGTH, "batch_size": GLOBAL_BATCH // 2,
        "learning_rate": RATE, "beta": BETA, "average_log_prob": 1, "dtype": "float32", "shuffle": 0, "log_interval": 1,
        "save_dir": out,
    }  # fmt: skip
    return [part for name, value in flags.items() for part in (f"--{name}", value)]


def row_mean(model: PreTrainedModel, tokens, mask) -> Tensor:
    """Mean log-prob of a row's masked tokens, from the logits of the row alone."""
    ids = torch.tensor(tokens.tolist())
    log_probs = model(input_ids=ids[None, :-1], use_cache=False).logits[0].log_softmax(-1)
    of_tokens = log_probs.gather(1, ids[1:, None])[:, 0]
    return of_tokens[torch.tensor(mask[1:].tolist(), dtype=torch.bool)].mean()


def pair_loss(model: PreTrainedModel, reference: PreTrainedModel, pair: PreferencePair) -> Tensor:
    """DPO with mean log-probs, as in MiniMind."""
    halves = ((pair.chosen, pair.chosen_mask), (pair.rejected, pair.rejected_mask))
    chosen, rejected = (row_mean(model, *half) for half in halves)
    with torch.no_grad():
        reference_chosen, reference_rejected = (row_mean(reference, *half) for half in halves)
    return -functional.logsigmoid(BETA * ((chosen - rejected) - (reference_chosen - reference_rejected)))


def plain_losses(
    model: PreTrainedModel, data, cache, rates: list[float], reference: PreTrainedModel | None = None
) -> list[float]:
    """Loss of each step; `model` is trained. Without a reference it starts as one."""
    tokenizer = AutoTokenizer.from_pretrained(demo.TOKENIZER_PATH)
    table = load_table(open_source(data), tokenizer, max_length=LENGTH, num_workers=0, cache_dir=cache)
    reference = reference or copy.deepcopy(model)
    # A text gives the other half of a composite model no gradient, so this optimizer leaves it as it is.
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    losses = []
    for step, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        pairs = [table[index] for index in range(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH)]
        loss = torch.stack([pair_loss(model, reference, pair) for pair in pairs]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("model_type", FAMILIES)
def test_training_is_that_of_the_models_own_forward(model_type, data, tmp_path):
    config, message = FAMILIES[model_type]
    model = save_model(model_type, tmp_path / "start")
    done = train(*arguments(tmp_path / "start", data, tmp_path / "out"), config=config, ranks=2).succeeded()
    assert message in done.output
    steps = metrics(tmp_path / "out")
    assert len(steps) == PAIRS // GLOBAL_BATCH
    expected = plain_losses(model, data, tmp_path / "cache", [entry["learning_rate"] for entry in steps])
    assert expected[0] != expected[-1]
    assert [entry["loss"] for entry in steps] == pytest.approx(expected, abs=1e-6)
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "out/dpo_32", dtype=torch.float32).state_dict()
    for name, wanted in model.state_dict().items():
        torch.testing.assert_close(trained[name], wanted, rtol=0, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_the_reference_may_be_another_model(data, tmp_path):
    """The reference, not the policy, needs padded rows. Its engine is judged, scores the cache and is freed."""
    model, reference = save_model("llama", tmp_path / "start"), save_model("bloom", tmp_path / "other")
    flags = arguments(tmp_path / "start", data, tmp_path / "out")
    other = ("--reference_weight", tmp_path / "other", "--reference", "cached", "--cache_dir", tmp_path / "cache")
    done = train(*flags, *other, config="zero3", ranks=2).succeeded()
    assert FAMILIES["bloom"][1] in done.output
    assert f"the reference is another model, bloom from {tmp_path / 'other'}" in done.output
    steps = metrics(tmp_path / "out")
    rates = [entry["learning_rate"] for entry in steps]
    expected = plain_losses(model, data, tmp_path / "cache", rates, reference)
    assert [entry["loss"] for entry in steps] == pytest.approx(expected, abs=1e-6)
    assert abs(expected[0] - math.log(2)) > 1e-4


def test_an_encoder_is_refused_on_every_rank(data, tmp_path):
    save_model("bert", tmp_path / "start")
    done = train(*arguments(tmp_path / "start", data, tmp_path / "out"), config="zero3", ranks=2)
    assert done.status == 1
    assert "a bert model cannot be trained here" in done.output
    assert done.output.count("it is not causal") == 1
    assert "Traceback" not in done.output

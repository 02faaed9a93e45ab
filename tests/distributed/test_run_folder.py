"""Files of a finished run: metrics, TensorBoard, settings and weights, for MiniMind and Hugging Face models."""

from __future__ import annotations

import csv
import json
import math
import re

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, MistralConfig, Qwen3Config

import minimind  # noqa: F401 - registers MiniMind with the Auto classes
from minimind import demo
from minimind.conversion.trained import open_trained
from minimind.engine.summaries import tag_of
from minimind.training.folder_lock import FolderLock
from minimind.weights.sources import open_weights
from tests.distributed.launching import REPO, metrics, train

pytestmark = pytest.mark.distributed

TRAINED = {
    *("loss", "dpo_loss", "aux_loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies"),
    *("rewards/margins", "logps/chosen", "logps/rejected", "grad_norm", "learning_rate"),
    *("lengths/chosen", "lengths/rejected", "nll", "entropy", "token_accuracy"),
    *("tokens_per_second", "pairs_per_second", "memory_gib", "peak_memory_gib"),
}
EVALUATED = {f"eval/{name}" for name in TRAINED - {"grad_norm", "learning_rate"}}
PHASES = {f"time/{phase}" for phase in ("data", "reference", "forward", "backward", "optimizer")}
TRAINED |= PHASES | {"time/step", "mfu", "tokens_per_second_per_rank", "grad_clipped"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two ranks in bf16, with a held-out set of 7 pairs that does not divide among them, and a CSV monitor."""
    folder = tmp_path_factory.mktemp("run")
    for name, source, count in (("train", demo.TRAIN_PATH, 16), ("eval", demo.EVAL_PATH, 7)):
        lines = source.read_text(encoding="utf-8").splitlines(keepends=True)[:count]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    config = json.loads((REPO / "ds_configs/zero3.json").read_text())
    config["csv_monitor"] = {"enabled": True, "output_path": "auto", "job_name": "auto"}
    (folder / "zero3_csv.json").write_text(json.dumps(config))
    flags = {
        "data_path": folder / "train.jsonl",
        "eval_data_path": folder / "eval.jsonl",
        "tokenizer_path": demo.TOKENIZER_PATH,
        "from_weight": demo.WEIGHT_PATH,
        "deepspeed": folder / "zero3_csv.json",
        "batch_size": 2,
        "learning_rate": 1e-3,
        "lr_schedule": "linear",
        "warmup_ratio": 0.5,
        "log_interval": 2,
        "eval_interval": 1,
        "save_best": "eval/loss",
        "save_dir": folder / "out",
    }
    done = train(*(part for name, value in flags.items() for part in (f"--{name}", value)), ranks=2).succeeded()
    return folder / "out", done.output


def test_metrics_have_the_documented_names(run):
    folder, _ = run
    trained, evaluated = metrics(folder), metrics(folder, "eval/loss")
    assert [entry["step"] for entry in trained] == [1, 2, 4]
    assert [entry["step"] for entry in evaluated] == [0, 1, 2, 3, 4]
    assert all(set(entry) == TRAINED | {"step", "epoch"} for entry in trained)
    assert all(set(entry) == EVALUATED | {"step", "epoch"} for entry in evaluated)
    assert all(math.isfinite(value) for entry in trained + evaluated for value in entry.values())
    assert trained[-1]["epoch"] == 1.0


def test_run_starts_at_ln_2_and_a_tie_counts_half(run):
    folder, _ = run
    first, held_out = metrics(folder)[0], metrics(folder, "eval/loss")[0]
    for entry, prefix in ((first, ""), (held_out, "eval/")):
        assert entry[f"{prefix}loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert entry[f"{prefix}rewards/margins"] == pytest.approx(0, abs=1e-6)
        assert entry[f"{prefix}rewards/accuracies"] == 0.5


def test_evaluation_counts_every_pair_once(run):
    folder, _ = run
    # 7 pairs: an accuracy is a multiple of 1/14 (a tie counts half).
    accuracy = metrics(folder, "eval/loss")[-1]["eval/rewards/accuracies"]
    assert (accuracy * 14) == pytest.approx(round(accuracy * 14), abs=1e-6)


def test_the_best_weights_are_those_of_the_best_evaluation(run):
    folder, output = run
    losses = {entry["step"]: entry["eval/loss"] for entry in metrics(folder, "eval/loss")}
    record = json.loads((folder / "best/best.json").read_text())
    assert (record["step"], record["value"]) == min(losses.items(), key=lambda one: one[1])
    assert f"best weights: eval/loss {record['value']:.6g} at step {record['step']}, in {folder / 'best'}" in output
    assert {path.name for path in (folder / "best").iterdir()} == {"best.json", "run.json", "dpo_96", "dpo_96.pth"}
    # At the last step they are the weights that the run ends with.
    same = torch.load(folder / "best/dpo_96.pth"), torch.load(folder / "dpo_96.pth")
    assert all(torch.equal(one, same[1][name]) for name, one in same[0].items()) == (record["step"] == 4)
    assert open_trained(folder / "best", {}).step is None


def test_tensorboard_and_csv_have_the_same_events_by_global_step(run):
    folder, _ = run
    events = EventAccumulator(str(folder / "tensorboard" / "out"))
    events.Reload()
    saved = {f"moved/{dtype}" for dtype in ("float32", "bfloat16", "float16")}
    assert set(events.Tags()["scalars"]) == {tag_of(name) for name in TRAINED | EVALUATED | saved}
    logged = {entry["step"]: entry for entry in metrics(folder)}
    for name in ("loss", "rewards/margins", "grad_norm", "learning_rate"):
        scalars = {event.step: event.value for event in events.Scalars(tag_of(name))}
        assert scalars == pytest.approx({step: entry[name] for step, entry in logged.items()}, rel=1e-6)
    # Two of four steps are warm-up; then the rate falls in two steps of one half each.
    rates = {step: entry["learning_rate"] for step, entry in logged.items()}
    assert rates == pytest.approx({1: 0.5e-3, 2: 1e-3, 4: 0.5e-3}, rel=1e-12)
    rows = list(csv.reader((folder / "csv" / "loss.csv").open()))
    assert [int(row[0]) for row in rows[1:]] == [1, 2, 4]


def test_tensorboard_has_settings_histograms_and_hyperparameters(run):
    folder, output = run
    assert f"tensorboard --logdir {folder / 'tensorboard'}" in output
    events = EventAccumulator(str(folder / "tensorboard" / "out"), size_guidance={"histograms": 0})
    events.Reload()
    (settings,) = events.Tensors("settings/text_summary")
    assert b"| learning_rate | 0.001 | flag |" in settings.tensor_proto.string_val[0]
    parts = ("margins", "log_ratios_chosen", "log_ratios_rejected", "lengths_chosen", "lengths_rejected")
    assert set(events.Tags()["histograms"]) == {f"eval/pairs/{part}" for part in parts}
    margins = events.Histograms("eval/pairs/margins")
    assert [(one.step, one.histogram_value.num) for one in margins] == [(step, 7) for step in range(5)]
    mean = metrics(folder, "eval/loss")[-1]["eval/rewards/margins"]
    assert margins[-1].histogram_value.sum / 7 == pytest.approx(mean, rel=1e-4)
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    compared = EventAccumulator(str(folder / "tensorboard" / "out" / "final"))
    compared.Reload()
    assert set(compared.PluginTagToContent("hparams")) == {"_hparams_/session_start_info", "_hparams_/session_end_info"}
    names = ("eval/loss", "eval/rewards/accuracies", "eval/rewards/margins", "loss", "tokens_per_second")
    assert set(compared.Tags()["scalars"]) == {f"final/{name}" for name in names}
    last = metrics(folder, "eval/loss")[-1]["eval/loss"]
    assert compared.Scalars("final/eval/loss")[-1].value == pytest.approx(last, rel=1e-6)


def test_times_and_the_mfu_of_logged_steps_add_up(run):
    folder, output = run
    for entry in metrics(folder):
        assert 0 < entry["mfu"] < 1
        assert sum(entry[name] for name in PHASES) < 1.5 * entry["time/step"]
        assert entry["tokens_per_second_per_rank"] == entry["tokens_per_second"] / 2
        assert 0 <= entry["grad_clipped"] <= 1
    assert output.count("  mfu: over ") == 1


def test_a_save_says_how_much_of_the_training_the_files_keep(run):
    folder, _ = run
    (saved,) = metrics(folder, "moved/float32")
    assert saved["step"] == 4
    assert 0 < saved["moved/bfloat16"] < saved["moved/float16"] <= saved["moved/float32"] <= 1
    start, trained = open_weights(demo.WEIGHT_PATH, {}), open_weights(folder / "dpo_96.pth", {})
    same = [(trained.read(name) == start.read(name)).flatten() for name in start.shapes()]
    # The demo's tensors are small, most of them are compared as a whole.
    assert 1 - torch.cat(same).double().mean() == pytest.approx(saved["moved/float16"], abs=0.02)


def test_settings_are_written_with_their_origins_and_without_auto(run):
    folder, output = run
    settings = json.loads((folder / "run.json").read_text())["settings"]
    assert settings["learning_rate"] == {"value": 1e-3, "origin": "flag"}
    assert settings["hidden_size"]["origin"] == "weights"
    assert settings["beta"] == {"value": 0.15, "origin": "generation 3"}
    resolved = json.loads((folder / "ds_config.json").read_text())
    assert "auto" not in json.dumps(resolved)
    assert resolved["train_batch_size"] == 4
    assert resolved["bf16"]["enabled"] is True
    assert resolved["optimizer"]["params"]["lr"] == 1e-3
    assert "learning_rate" in output
    assert "(flag)" in output


def test_weights_in_pth_and_folder_are_the_same(run):
    folder, _ = run
    (path,) = folder.glob("dpo_*.pth")
    assert all(tensor.dtype == torch.float16 for tensor in torch.load(path, weights_only=True).values())
    start, trained = open_weights(demo.WEIGHT_PATH, {}), open_weights(path, {})
    assert trained.shapes() == start.shapes()
    assert any(not torch.equal(trained.read(name), start.read(name)) for name in start.shapes())
    model = AutoModelForCausalLM.from_pretrained(path.with_suffix(""))
    AutoTokenizer.from_pretrained(path.with_suffix(""))
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(model.state_dict()[name].float(), trained.read(name).float(), rtol=2**-8, atol=2**-16)


CONFIGS = {
    "llama": LlamaConfig(
        vocab_size=6400, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "qwen3": Qwen3Config(
        vocab_size=6400, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16,
    ),
    # A window narrower than its rows: no packs.
    "mistral": MistralConfig(
        vocab_size=6400, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=32,
    ),
    # Tied under names of its own, persistent buffers, and dropout, which is turned off.
    "gpt2": GPT2Config(
        vocab_size=6400, n_embd=64, n_layer=2, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=2,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "config", "dtype"),
    [
        ("llama", "zero2", "bfloat16"),
        ("llama", "zero3", "bfloat16"),
        ("qwen3", "zero3", "float32"),
        ("mistral", "zero3", "float32"),
        ("gpt2", "zero3", "float32"),
    ],
)
def test_any_hugging_face_model_trains_from_its_folder(kind, config, dtype, tokenizer, run, tmp_path):
    data = run[0].parent / "train.jsonl"
    start = tmp_path / "start"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[kind]).save_pretrained(start)
    tokenizer.save_pretrained(start)
    flags = ("--data_path", data, "--from_weight", start, "--max_seq_len", 256, "--save_dir", tmp_path / "out")
    more = ("--dtype", dtype, "--learning_rate", 1e-3, "--max_steps", 2, "--log_interval", 1)
    done = train(*flags, *more, config=config, ranks=1).succeeded()
    assert ("rows are padded, not packed" in done.output) == (kind == "mistral")
    # Exactly the same model in both engines, rotary tables included: every margin is 0, every pair a tie.
    first = metrics(tmp_path / "out")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert first["rewards/margins"] == 0
    assert first["rewards/accuracies"] == 0.5
    before = AutoModelForCausalLM.from_pretrained(start)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out/dpo_64")
    assert before.state_dict().keys() == after.state_dict().keys()
    assert any(not torch.equal(one, other) for one, other in zip(before.parameters(), after.parameters(), strict=True))
    AutoTokenizer.from_pretrained(tmp_path / "out/dpo_64")


@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_small_updates_survive_in_bf16(config, run, tmp_path):
    """A step at learning rate 1e-9 moves no weight: the start weights are written, not their bf16 rounding."""
    flags = ("--learning_rate", 1e-9, "--max_steps", 1, "--save_dtype", "float32", "--save_dir", tmp_path)
    done = train(*flags, config=config, ranks=2).succeeded()
    start, end = open_weights(demo.WEIGHT_PATH, {}), open_weights(tmp_path / "dpo_96.pth", {})
    for name in start.shapes():
        torch.testing.assert_close(end.read(name), start.read(name).float(), rtol=0, atol=1e-8)
    # The folder, in bf16, has lost what float32 has kept, and the guard says so. The start weights have 16 bits, of
    # which some lie between two numbers of bf16: any change of these is kept.
    lost = r"GUARD: the written weights keep few of the changes of training: bfloat16 \d% of the weights that have"
    assert len(re.findall(lost, done.output)) == 1
    rules = [json.loads(line)["rule"] for line in (tmp_path / "findings.jsonl").read_text().splitlines()]
    assert "lost updates" in rules
    assert "GUARD: the written weights" not in run[1]  # at a learning rate of 1e-3


@pytest.mark.long
def test_compiled_blocks_with_checkpointing_take_the_same_steps(tmp_path):
    flags = ("--dtype", "float32", "--max_steps", 3, "--log_interval", 1)
    train(*flags, "--save_dir", tmp_path / "eager").succeeded()
    fast = ("--use_compile", 1, "--gradient_checkpointing", 1)
    train(*flags, *fast, "--save_dir", tmp_path / "compiled", timeout=280).succeeded()
    for one, other in zip(metrics(tmp_path / "eager"), metrics(tmp_path / "compiled"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_a_folder_that_another_run_writes_into_is_refused_on_all_ranks(run):
    """This process stands for the other run. The finished run's records stay as they are."""
    folder, _ = run
    lock, before = FolderLock(folder), (folder / "metrics.jsonl").read_bytes()
    lock.acquire(create=False)
    done = train("--save_dir", folder, "--max_steps", 1, ranks=2)
    assert done.status not in (0, None)
    assert f"ConfigError: --save_dir {folder}: another run writes into this folder (process" in done.output
    assert "Traceback" not in done.output
    assert (folder / "metrics.jsonl").read_bytes() == before
    lock.release()

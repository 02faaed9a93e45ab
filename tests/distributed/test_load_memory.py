"""Building policy and reference as ZeRO-3 shards takes little more memory than the shards, from either kind of file."""

from __future__ import annotations

import pytest

from tests.benchmarks.load_memory import measure, write_weights

pytestmark = [pytest.mark.distributed, pytest.mark.long, pytest.mark.timeout(600)]


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_building_both_shards_takes_three_quarters_of_the_models_size(kind, tmp_path, monkeypatch):
    # glibc otherwise keeps up to half a model of memory that DeepSpeed frees while it makes tensor after tensor.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    pth, huggingface = write_weights(tmp_path, hidden_size=768, num_hidden_layers=8)
    answers = measure(pth if kind == "pth" else huggingface, tmp_path)
    assert len(answers) == 2
    for answer in answers:
        size, builds, engine = answer["size"], answer["builds"], answer["engine"]
        assert size == pytest.approx(2 * 64e6, rel=0.01)
        # Both halves of both models, in bf16; two whole models would be 2.
        assert answer["shards"] / size == pytest.approx(1, abs=0.01)
        assert builds["anon_stays"] / size < 1.1
        assert builds["anon_peak"] / (2 * size) < 0.75
        # No rank maps more of the file than its shares, give or take what the system reads ahead.
        assert builds["file_peak"] / size < 1.1
        # Half of the float32 masters is a model size in bf16, and so is the copy DeepSpeed makes of them for a moment;
        # a whole float32 model would be 2 beside them.
        assert (engine["anon_peak"] - engine["anon_stays"]) / size < 1.5

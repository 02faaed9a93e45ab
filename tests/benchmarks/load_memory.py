"""Measures the peak memory of two ranks that load a large model as ZeRO-3 shards.

    python -m tests.benchmarks.load_memory [--billions B]

Weights of about `--billions` parameters are written once, as a `.pth` and as a Hugging Face folder. Policy and
reference are then built from each by the code of training, and each rank's memory is compared with the model's size in
bf16.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from minimind.model.configuration import MiniMindConfig
from minimind.weights.construction import empty_model, tensor_shapes
from tests.distributed.launching import launch


def write_weights(folder: Path, *, hidden_size: int, num_hidden_layers: int, vocab_size: int = 6400) -> list[Path]:
    """Random bf16 weights as a MiniMind `.pth` and as a Hugging Face folder."""
    config = MiniMindConfig(
        generation=3, hidden_size=hidden_size, num_hidden_layers=num_hidden_layers, vocab_size=vocab_size
    )
    state = {
        name: torch.empty(shape, dtype=torch.bfloat16).uniform_(-0.02, 0.02)
        for name, shape in tensor_shapes(empty_model(config)).items()
    }
    pth, huggingface = folder / f"full_sft_{hidden_size}.pth", folder / "huggingface"
    torch.save(state, pth)
    config.save_pretrained(huggingface)
    save_file(state, huggingface / "model.safetensors", metadata={"format": "pt"})
    return [pth, huggingface]


def measure(path: Path, folder: Path, *, ranks: int = 2, timeout: float = 500) -> list[dict]:
    """Memory of each rank of a launch while it loads; see tests/distributed/workers/load.py."""
    answer = folder / "answer.json"
    launch("tests/distributed/workers/load.py", path, answer, ranks=ranks, timeout=timeout, launcher=True).succeeded()
    return json.loads(answer.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--billions", type=float, default=1.0, help="parameters, about (default: 1)")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--folder", default="", help="where to write the weights (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder or None) as temporary:
        folder = Path(temporary)
        # A layer of hidden size 2048 has 52.4 M parameters.
        layers = max(1, round(options.billions * 1e9 / 52.4e6))
        for path in write_weights(folder, hidden_size=2048, num_hidden_layers=layers):
            answers = measure(path, folder, ranks=options.ranks, timeout=1800)
            size = answers[0]["size"]
            print(
                f"\n{path.name}: {size / 2e9:.2f} B parameters, {size / 2**30:.2f} GiB in bf16, {options.ranks} ranks"
            )
            print("rank  what                      own peak  own stays  file pages peak   (in model sizes)")
            for rank, answer in enumerate(answers):
                print(f"{rank:>4}  shards of both{'':<12}{answer['shards'] / size:>18.2f}")
                for name, what in (("builds", "building both"), ("engine", "the policy's engine")):
                    part = {key: value / size for key, value in answer[name].items()}
                    print(
                        f"{rank:>4}  {what:<24}  {part['anon_peak']:>8.2f}  {part['anon_stays']:>9.2f}  "
                        f"{part['file_peak']:>15.2f}"
                    )


if __name__ == "__main__":
    main()

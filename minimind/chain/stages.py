"""The three runs of the chain, and what each must have learned.

folder -> STAGES -> command of a run, metric of its first and its last evaluation -> Progress
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from minimind import demo
from minimind.diagnosis.run_files import METRICS_FILE, read_entries
from minimind.errors import DataError
from minimind.model.configuration import MiniMindConfig

SEED = 42


def new_model(hidden_size: int) -> MiniMindConfig:
    """The model whose weights the first run makes."""
    return MiniMindConfig(generation=3, hidden_size=hidden_size, num_hidden_layers=3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One run.

    Attributes:
        name: of its data files and of its folder.
        script: below launch/.
        weights: base name of the weights that it writes.
        metric: of its evaluations, which must improve from the first to the last.
        rises: whether a larger value is better.
        flags: besides paths.
    """

    name: str
    script: str
    weights: str
    metric: str
    rises: bool
    flags: tuple[str, ...]

    @property
    def has_reference(self) -> bool:
        """Whether its metric is about the rewards of a policy and its reference."""
        return self.metric.startswith("rewards/")

    def command(self, folder: Path, start: Path | None, hidden_size: int) -> list[str]:
        """Arguments of the launcher behind its own: the script and its flags.

        Args:
            folder: of the chain.
            start: weights that the run starts from; None: new ones.
            hidden_size: of new weights.
        """
        data = folder / "data" / self.name
        new = new_model(hidden_size)
        sizes = [f"--{name}={getattr(new, name)}" for name in ("generation", "hidden_size", "num_hidden_layers")]
        weights = ("--from_weight", str(start)) if start is not None else ("--from_weight", "none", *sizes)
        return [
            str(Path(__file__).resolve().parents[2] / "launch" / self.script),
            *("--deepspeed", str(Path(__file__).resolve().parents[2] / "ds_configs" / "zero2.json")),
            *("--data_path", f"{data}.jsonl", "--eval_data_path", f"{data}_eval.jsonl"),
            *("--tokenizer_path", str(demo.TOKENIZER_PATH), "--save_dir", str(folder / self.name), *weights),
            *("--seed", str(SEED), "--max_seq_len", "128", "--save_interval", "0", *self.flags),
        ]

    def written(self, folder: Path, hidden_size: int) -> Path:
        """The Hugging Face folder that the run writes."""
        return folder / self.name / f"{self.weights}_{hidden_size}"

    def progress(self, folder: Path) -> Progress:
        """The metric before and after the run.

        Raises:
            DataError: the run has not evaluated, or its metrics cannot be read.
        """
        path, name = folder / self.name / METRICS_FILE, f"eval/{self.metric}"
        found = [entry[name] for entry in read_entries(path) if name in entry]
        if not found:
            raise DataError(f"{path}: has no {name}: the run has not evaluated")
        return Progress(stage=self, before=found[0], after=found[-1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """The metric of a stage before and after its run."""

    stage: Stage
    before: float
    after: float

    @property
    def is_better(self) -> bool:
        """Whether the run has improved it."""
        return (self.after > self.before) if self.stage.rises else (self.after < self.before)

    def describe(self) -> str:
        """For people: "pretrain: held-out perplexity 6408 -> 12.3"."""
        verdict = "" if self.is_better else "  NOT BETTER"
        return f"{self.stage.name}: held-out {self.stage.metric} {self.before:.4g} -> {self.after:.4g}{verdict}"


_BATCH = ("--batch_size", "16", "--accumulation_steps", "1", "--log_interval", "10", "--eval_interval", "40")
STAGES = (
    Stage(
        name="pretrain",
        script="pretrain.py",
        weights="pretrain",
        metric="perplexity",
        rises=False,
        flags=(*_BATCH, "--epochs", "1", "--learning_rate", "4e-3", "--warmup_steps", "20"),
    ),
    Stage(
        name="sft",
        script="train_sft.py",
        weights="full_sft",
        metric="token_accuracy",
        rises=True,
        flags=(*_BATCH, "--epochs", "1", "--learning_rate", "2e-3"),
    ),
    Stage(
        name="dpo",
        script="train_dpo.py",
        weights="dpo",
        metric="rewards/accuracies",
        rises=True,
        flags=("--batch_size", "8", "--learning_rate", "5e-5", "--log_interval", "5", "--eval_interval", "15"),
    ),
)

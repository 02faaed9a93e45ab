"""What a run is: every setting typed, with its flag, default and range in one place; the command line is made of it.

    argv -> parse_settings -> Settings (values + where each came from) -> DeepSpeed file, demo, weights add theirs

MiniMind's flags keep MiniMind's names, meanings and defaults.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from minimind.errors import ConfigError

FLAG, DEFAULT, DEMO, DEEPSPEED_FILE, WEIGHTS = "flag", "default", "demo", "DeepSpeed file", "weights"
CHECKPOINT, MEASURED = "checkpoint", "measured"


def _flag(
    default: Any,
    help: str,
    *,
    group: str,
    choices: Sequence[Any] | None = None,
    low: float | None = None,
    above: float | None = None,
) -> Any:
    metadata = {"help": help, "group": group, "choices": choices, "low": low, "above": above}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run. An empty string or 0 of a size means: not given, read it elsewhere."""

    # Data
    data_path: str = _flag("", "preference pairs, JSON lines; without it the bundled demo runs", group="data")
    eval_data_path: str = _flag(
        "", "held-out pairs, evaluated at start, every eval_interval and at the end", group="data"
    )
    tokenizer_path: str = _flag("", "folder of the tokenizer; a Hugging Face folder brings its own", group="data")
    max_seq_len: int = _flag(1024, "tokens kept of a row", group="data", low=2)
    on_bad_row: str = _flag(
        "error",
        "error: stop and list them; skip: leave them out, counted; keep: like skip, but rows that truncation left "
        "without an answer stay, with a loss of ln 2 and no gradient, as in MiniMind",
        group="data",
        choices=("error", "skip", "keep"),
    )
    empty_think_ratio: float = _flag(
        1.0, "share of pairs whose empty <think> block stays (MiniMind-3 drops most at random)", group="data", low=0
    )
    shuffle: bool = _flag(True, "new order of pairs every epoch; 0: file order", group="data")
    seed: int = _flag(42, "of the order of pairs, dropout and fresh weights", group="data", low=0)
    num_workers: int = _flag(8, "processes that tokenise, at most one per core", group="data", low=0)
    cache_dir: str = _flag(
        "", "tokenised data and cached references, by content; $XDG_CACHE_HOME/minimind without it", group="data"
    )

    # Model
    from_weight: str = _flag(
        "full_sft",
        "start weights: a MiniMind .pth, a Hugging Face folder, none, or MiniMind's short name of a file in save_dir",
        group="model",
    )
    generation: int = _flag(
        0, "MiniMind generation; read off the weights, 2 without any", group="model", choices=(0, 2, 3)
    )
    hidden_size: int = _flag(512, "H; read off the weights", group="model", low=1)
    num_hidden_layers: int = _flag(8, "L; read off the weights", group="model", low=1)
    use_moe: bool = _flag(False, "mixture of experts; read off the weights", group="model")
    num_attention_heads: int = _flag(0, "heads, where the weights do not tell (MiniMind2: 8)", group="model", low=0)
    num_experts_per_tok: int = _flag(0, "experts per token (MiniMind2: 2, MiniMind-3: 1)", group="model", low=0)
    rope_theta: float = _flag(0.0, "rotary base (MiniMind: 1e6)", group="model", low=0)
    inference_rope_scaling: bool = _flag(False, "YaRN, for contexts longer than 2048", group="model")

    # Objective
    beta: float = _flag(0.1, "strength of the pull towards the reference", group="objective", above=0)
    average_log_prob: bool = _flag(
        True, "a row's mean log-prob, as MiniMind; 0: the sum, as the paper", group="objective"
    )

    # Optimisation
    epochs: int = _flag(1, "passes over the pairs", group="optimisation", low=1)
    max_steps: int = _flag(
        0, "end after this many global steps, the schedule with them; 0: by epochs", group="optimisation", low=0
    )
    batch_size: int = _flag(4, "pairs per rank and micro-batch", group="optimisation", low=1)
    accumulation_steps: int = _flag(1, "micro-batches per global step", group="optimisation", low=1)
    micro_batch_tokens: int = _flag(
        0,
        "packed tokens of a micro-batch at most: a rank's batch_size x accumulation_steps pairs of a step are dealt "
        "anew into as few micro-batches; 0: batch_size pairs each",
        group="optimisation",
        low=0,
    )
    learning_rate: float = _flag(
        4e-8, "of the first steps; a cosine takes it to a tenth", group="optimisation", above=0
    )
    warmup_steps: int = _flag(0, "steps over which the learning rate grows to its value", group="optimisation", low=0)
    grad_clip: float = _flag(1.0, "largest norm of the gradient; 0: no clipping", group="optimisation", low=0)
    dtype: str = _flag(
        "bfloat16",
        "of weights and activations; the optimizer's are float32",
        group="optimisation",
        choices=("bfloat16", "float16", "float32"),
    )

    # Engine
    reference: str = _flag(
        "live",
        "live: a frozen shard scores the pairs of every step; cached: it scores every pair once, and the log-probs are "
        "kept in cache_dir",
        group="engine",
        choices=("live", "cached"),
    )
    deepspeed: str = _flag("", "DeepSpeed configuration of the policy, e.g. ds_configs/zero2.json", group="engine")
    reference_config: str = _flag(
        "", "DeepSpeed configuration of the reference; ds_configs/reference.json", group="engine"
    )
    gradient_checkpointing: bool = _flag(
        False, "recompute activations in backward: less memory, more time", group="engine"
    )
    use_compile: bool = _flag(False, "torch.compile the policy's blocks (ZeRO stage 0 to 2)", group="engine")
    attention: str = _flag(
        "auto",
        "over packs: torch's SDPA segment by segment (sdpa), one call of variable-length flash attention (varlen), "
        "FlexAttention (flex); auto: on a GPU the fastest that gives SDPA's numbers, measured at start, on a CPU its "
        "own kernel or SDPA",
        group="engine",
        choices=("auto", "sdpa", "varlen", "flex"),
    )

    # Run
    save_dir: str = _flag("out/dpo", "the run's folder; all that the run writes is there", group="run")
    save_weight: str = _flag("dpo", "name of the weights it writes", group="run")
    save_dtype: str = _flag("float16", "dtype of the .pth", group="run", choices=("float16", "bfloat16", "float32"))
    save_interval: int = _flag(100, "global steps between checkpoints; 0: only at the end", group="run", low=0)
    log_interval: int = _flag(100, "global steps between logged steps", group="run", low=1)
    eval_interval: int = _flag(0, "global steps between evaluations; 0: only at start and end", group="run", low=0)
    timeout: int = _flag(
        1800,
        "seconds without progress of any rank after which the run says who has not arrived, and ends",
        group="run",
        low=1,
    )
    keep_checkpoints: int = _flag(0, "newest checkpoints that are kept; 0: all", group="run", low=0)
    from_resume: bool = _flag(
        False,
        "go on from the newest checkpoint in save_dir, if there is one; ranks and ZeRO stage may be others",
        group="run",
    )
    on_bad_checkpoint: str = _flag(
        "error",
        "if the newest checkpoint is damaged: error: stop, saying what is wrong; previous: take the newest whole one",
        group="run",
        choices=("error", "previous"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """A configuration with the origin of each value.

    Attributes:
        config: the values.
        origins: name -> "flag", "default", "demo", "DeepSpeed file", "weights", "checkpoint" or "measured".
    """

    config: TrainConfig
    origins: Mapping[str, str]

    def explicit(self, name: str) -> bool:
        """Whether the user gave it on the command line."""
        return self.origins[name] == FLAG

    def with_values(self, values: Mapping[str, Any], origin: str) -> Settings:
        """Settings in which these values, from this origin, take the place of what was there."""
        return Settings(
            config=dataclasses.replace(self.config, **values),
            origins={**self.origins, **dict.fromkeys(values, origin)},
        )

    def with_defaults(self, values: Mapping[str, Any], origin: str) -> Settings:
        """The same, but flags given by the user stay."""
        return self.with_values({k: v for k, v in values.items() if not self.explicit(k)}, origin)


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are ConfigErrors that name the nearest flag."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def parse_settings(argv: Sequence[str]) -> Settings:
    """Settings from command-line arguments.

    Raises:
        ConfigError: unknown flags (with the nearest known one), values of the wrong kind or out of range; all of
            them at once where the arguments can be told apart.
    """
    parser = build_parser()
    given, unknown = parser.parse_known_args(list(argv))
    values = {name: value for name, value in vars(given).items() if name != "local_rank"}
    problems = [_unknown_flag(argument) for argument in unknown if argument.startswith("-")]
    if unknown and not problems:
        problems = [f"{argument!r} belongs to no flag" for argument in unknown]
    problems += [problem for name, value in values.items() if (problem := _out_of_range(name, value))]
    if problems:
        raise ConfigError.from_problems(problems)
    origins = {field.name: FLAG if field.name in values else DEFAULT for field in dataclasses.fields(TrainConfig)}
    return Settings(config=TrainConfig(**values), origins=origins)


def build_parser() -> argparse.ArgumentParser:
    """The command line, one flag per field of `TrainConfig`."""
    parser = _Parser(
        prog="deepspeed launch/train_dpo.py",
        description="Direct Preference Optimization on DeepSpeed.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    # The launcher adds it; ranks are told by the environment.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(TrainConfig):
        group = field.metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        is_bool = isinstance(field.default, bool)
        shown: Any = int(field.default is True) if is_bool else field.default
        help_text = field.metadata["help"] + (f" (default: {shown})" if shown != "" else "")
        options: dict[str, Any] = {"help": help_text.replace("%", "%%")}
        if is_bool:
            groups[group].add_argument(f"--{field.name}", type=_zero_or_one, metavar="{0,1}", **options)
        else:
            options["choices"] = field.metadata["choices"]
            groups[group].add_argument(f"--{field.name}", type=type(field.default), **options)
    return parser


def _zero_or_one(text: str) -> bool:
    if text not in ("0", "1"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither 0 nor 1")
    return text == "1"


def _unknown_flag(argument: str) -> str:
    name = argument.split("=")[0].lstrip("-")
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean --{near[0]}?" if near else "see --help"
    return f"unknown flag {argument.split('=')[0]}; {hint}"


def _out_of_range(name: str, value: Any) -> str | None:
    metadata = next(field for field in dataclasses.fields(TrainConfig) if field.name == name).metadata
    low, above = metadata["low"], metadata["above"]
    if isinstance(value, float) and not math.isfinite(value):
        return f"--{name} {value} is not a finite number"
    if low is not None and value < low:
        return f"--{name} {value} is below {low:g}"
    if above is not None and value <= above:
        return f"--{name} {value} is not above {above:g}"
    return None

"""From flags to what a run needs: start weights, tokenizer, DeepSpeed configurations, tokenised pairs.

Settings -> prepare -> Prepared        every disagreement of flags, files and weights in one error, before training
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from minimind import demo
from minimind.checkpoints.find import Checkpoint
from minimind.config import DEMO, WEIGHTS, JobConfig, Settings, flat_values
from minimind.data.table import PairTable, load_table
from minimind.engine.ds_config import ResolvedConfig, resolve_policy, resolve_reference, take_batch
from minimind.errors import ConfigError, DataError, MiniMindError, WeightsError
from minimind.model.backends import obstacle
from minimind.model.configuration import MiniMindConfig
from minimind.ranks.process import World, main_first
from minimind.training.setup.batch import keep_global_batch
from minimind.weights.sources import RandomSource, WeightSource, open_weights

Result = TypeVar("Result")

# What a MiniMind .pth cannot tell, and flags can.
_UNTOLD = ("num_attention_heads", "num_experts_per_tok", "rope_theta", "inference_rope_scaling")
# Flags that name a file or folder to read.
PATH_FLAGS = ("data_path", "eval_data_path", "tokenizer_path", "from_weight", "deepspeed", "reference_config")
_DS_CONFIGS = Path(__file__).resolve().parents[3] / "ds_configs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a run is made of, before any engine exists.

    Attributes:
        settings: every setting resolved, with its origin.
        is_demo: the bundled demo runs.
        checkpoint: what the run goes on from.
    """

    settings: Settings
    is_demo: bool
    checkpoint: Checkpoint | None
    source: WeightSource
    tokenizer: PreTrainedTokenizerBase
    policy_config: ResolvedConfig
    reference_config: ResolvedConfig


def prepare(settings: Settings, world: World, checkpoint: Checkpoint | None = None) -> Prepared:
    """Resolve everything that files and flags say about the run, and the checkpoint that it goes on from.

    Raises:
        ConfigError: all disagreements at once; a single problem keeps its own class.
    """
    is_demo = settings.config.data.data_path is None
    problems: list[MiniMindError] = []

    def attempt(action: Callable[[], Result]) -> Result | None:
        try:
            return action()
        except MiniMindError as error:
            problems.append(error)
            return None

    if is_demo:
        settings = _demo_settings(settings, problems)
    for flag in ("data_path", "eval_data_path"):
        path = settings.values[flag]
        if path is not None and not Path(path).is_file():
            what = "is a folder; give a file" if Path(path).is_dir() else "no such file"
            problems.append(DataError(f"--{flag} {path}: {what}"))
    if settings.explicit("eval_interval") and settings.config.data.eval_data_path is None:
        problems.append(ConfigError("--eval_interval needs held-out pairs: --eval_data_path"))
    if settings.explicit("on_bad_checkpoint") and not settings.config.run.from_resume:
        problems.append(ConfigError("--on_bad_checkpoint is for going on: --from_resume 1"))
    source = attempt(lambda: _source(settings.config))
    if source is not None:
        attempt(source.check_fit)
        settings = _model_settings(settings, source, problems)
    tokenizer = attempt(lambda: _tokenizer(settings.config, source))
    if tokenizer is not None and source is not None:
        attempt(lambda: _check_vocabulary(tokenizer, source))
    policy_config = attempt(lambda: _policy_config(settings, world, checkpoint))
    if policy_config is not None:
        settings = policy_config.settings
        attempt(lambda: _check_attention(settings.config, world))
    reference_config = attempt(lambda: _reference_config(settings, world))
    if source is not None:
        target = Path(settings.config.run.save_dir) / weights_name(settings.config)
        if Path(source.origin).absolute() in (target.absolute(), target.with_name(f"{target.name}.pth").absolute()):
            problems.append(
                ConfigError(
                    f"--from_weight {source.origin} is what this run would write over; give another --save_weight or "
                    "--save_dir"
                )
            )
    if problems:
        raise problems[0] if len(problems) == 1 else ConfigError.from_problems([str(p) for p in problems])
    assert source is not None
    assert tokenizer is not None
    assert policy_config is not None
    assert reference_config is not None
    resolved = {
        "tokenizer_path": str(tokenizer.name_or_path),
        "reference_config": str(_reference_path(settings.config)),
        "cache_dir": str(_cache_dir(settings.config)),
    }
    settings = settings.with_values({k: v for k, v in resolved.items() if settings.values[k] is None}, "default")
    return Prepared(
        settings=settings,
        is_demo=is_demo,
        checkpoint=checkpoint,
        source=source,
        tokenizer=tokenizer,
        policy_config=policy_config,
        reference_config=reference_config,
    )


def input_paths(config: JobConfig) -> dict[str, Path]:
    """What a run will read, by the flag that names it; whether it is there is not asked."""
    values = flat_values(config)
    paths = {name: Path(values[name]) for name in PATH_FLAGS if values[name] is not None}
    paths["from_weight"] = _weights_path(config)
    paths["reference_config"] = _reference_path(config)
    if config.data.data_path is None or config.model.from_weight == "none":
        del paths["from_weight"]
    return {f"--{name}": path for name, path in paths.items()}


def load_pairs(prepared: Prepared, world: World, path: str) -> PairTable:
    """A tokenised preference file under the run's policy for bad rows; one rank per machine tokenises.

    Raises:
        DataError: the file or, under `--on_bad_row error`, its rows are bad; the rows are listed.
    """
    config = prepared.settings.config
    return main_first(
        world,
        lambda: load_table(
            Path(path),
            prepared.tokenizer,
            max_length=config.data.max_seq_len,
            empty_think_ratio=config.data.empty_think_ratio,
            num_workers=config.data.num_workers,
            cache_dir=_cache_dir(config),
            on_progress=world.watch.tick,
        ).with_bad_rows(config.data.on_bad_row),
    )


def weights_name(config: JobConfig) -> str:
    """What the run's weights are called, as MiniMind calls them."""
    return f"{config.run.save_weight}_{config.model.hidden_size}{'_moe' if config.model.use_moe else ''}"


def _cache_dir(config: JobConfig) -> Path:
    if config.data.cache_dir is not None:
        return Path(config.data.cache_dir)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minimind"


def _demo_settings(settings: Settings, problems: list[MiniMindError]) -> Settings:
    given = settings.config.model.from_weight
    if settings.explicit("from_weight") and given != "none" and not settings.explicit("tokenizer_path"):
        problems.append(
            ConfigError(
                f"--from_weight {given} without --data_path: the demo's pairs are made for the demo's weights; "
                "give your pairs with --data_path, or leave --from_weight out"
            )
        )
    return settings.with_defaults(demo.SETTINGS, DEMO)


def _source(config: JobConfig) -> WeightSource:
    untold: dict[str, Any] = {name: value for name, value in flat_values(config).items() if name in _UNTOLD and value}
    if config.model.from_weight == "none":
        try:
            fresh = MiniMindConfig(
                generation=config.model.generation or 2,
                hidden_size=config.model.hidden_size,
                num_hidden_layers=config.model.num_hidden_layers,
                use_moe=config.model.use_moe,
                **untold,
            )
        except ValueError as error:
            raise ConfigError(f"--from_weight none: {error}") from error
        return RandomSource(fresh, config.data.seed)
    path = _weights_path(config)
    if not path.exists():
        raise WeightsError(
            f"--from_weight {config.model.from_weight}: neither a file or folder, nor MiniMind's short name of {path}; "
            "give a .pth, a Hugging Face folder or none"
        )
    return open_weights(path, untold)


def _weights_path(config: JobConfig) -> Path:
    path = Path(config.model.from_weight)
    if path.exists():
        return path
    moe = "_moe" if config.model.use_moe else ""
    return Path(config.run.save_dir) / f"{config.model.from_weight}_{config.model.hidden_size}{moe}.pth"


def _model_settings(settings: Settings, source: WeightSource, problems: list[MiniMindError]) -> Settings:
    """Sizes as the weights have them; flags that say otherwise are problems."""
    model = source.config
    told: dict[str, Any] = {}
    for name in ("hidden_size", "num_hidden_layers", "use_moe", "generation", *_UNTOLD):
        given, value = settings.values[name], getattr(model, name, None)
        if settings.explicit(name) and given != value and (given or name == "use_moe"):
            what = f"has {_shown(value)}" if value is not None else "has no such setting"
            problems.append(ConfigError(f"--{name} is {_shown(given)}, but {source.origin} {what}; drop the flag"))
        if value is not None:
            told[name] = value
    longest = getattr(model, "max_position_embeddings", None)
    if longest is not None and settings.config.data.max_seq_len > longest:
        problems.append(
            ConfigError(f"--max_seq_len is {settings.config.data.max_seq_len}, but the model has {longest} positions")
        )
    if settings.config.model.from_weight == "none":
        return settings.with_defaults(told, "default")
    return settings.with_defaults(told, WEIGHTS)


def _tokenizer(config: JobConfig, source: WeightSource | None) -> PreTrainedTokenizerBase:
    path: str | Path | None = config.data.tokenizer_path or (source.tokenizer_path if source is not None else None)
    if not path and config.model.from_weight == "none":
        path = demo.TOKENIZER_PATH
    if not path:
        raise ConfigError(
            f"{config.model.from_weight} brings no tokenizer; give its folder with --tokenizer_path (MiniMind's is "
            "`model/`)"
        )
    if not Path(path).is_dir():
        raise ConfigError(f"--tokenizer_path {path}: no such folder")
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # transformers raises many kinds for a broken folder.
        raise DataError(f"{path}: not a usable tokenizer folder ({error}); see --tokenizer_path") from error


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, source: WeightSource) -> None:
    largest = max(tokenizer.get_vocab().values()) + 1
    if largest > source.config.vocab_size:
        raise ConfigError(
            f"the tokenizer at {tokenizer.name_or_path} has {largest} tokens, {source.origin} only "
            f"{source.config.vocab_size}; they do not belong together"
        )


def _policy_config(settings: Settings, world: World, checkpoint: Checkpoint | None) -> ResolvedConfig:
    if settings.config.engine.deepspeed is None:
        raise ConfigError("--deepspeed FILE is missing, e.g. --deepspeed ds_configs/zero2.json")
    path = Path(settings.config.engine.deepspeed)
    if checkpoint is not None:
        # The file may fix a part of the batch; the checkpoint fills the rest, before the file's total is held to it.
        settings = keep_global_batch(take_batch(path, settings), checkpoint.manifest, world.size)
    return resolve_policy(path, settings, world.size, world.on_cpu)


def _reference_path(config: JobConfig) -> Path:
    return Path(config.engine.reference_config or _DS_CONFIGS / "reference.json")


def _reference_config(settings: Settings, world: World) -> ResolvedConfig:
    return resolve_reference(_reference_path(settings.config), settings, world.size, world.on_cpu)


def _check_attention(config: JobConfig, world: World) -> None:
    """What can be told of --attention before anything is tried."""
    if config.engine.attention == "auto":
        return
    if problem := obstacle(config.engine.attention, world.device, getattr(torch, config.optimisation.dtype)):
        raise ConfigError(f"--attention {config.engine.attention}: {problem}; use auto or sdpa")


def _shown(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)

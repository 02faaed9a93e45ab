"""From flags to everything that a run is made of, before any engine exists.

    Settings -> start weights -> tokenizer -> DeepSpeed files -> checks -> Prepared

Problems of all stages are raised as one error, before training.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from minimind import demo
from minimind.checkpoints.find import Checkpoint
from minimind.config import BAD_ROWS_KEPT, DEMO, STREAMING, JobConfig, ModelDefaults, Settings
from minimind.config.environment import with_switches
from minimind.config.generations import defaults_of_run, with_model_defaults
from minimind.config.rows import streams
from minimind.data.selection import KEEP, SKIP
from minimind.data.sets import plain_words
from minimind.data.sources import local_paths
from minimind.engine.ds_config import ResolvedConfig, resolve_policy, resolve_reference, take_batch
from minimind.errors import ConfigError
from minimind.objective.interface import AnyObjective
from minimind.objective.schedule import choose_schedule
from minimind.plan.sizes import ModelSizes
from minimind.ranks.world import World
from minimind.training.jobs.kinds import kind_of
from minimind.training.setup.adapters import NO_QUANTIZATION, open_adapters
from minimind.training.setup.batch import keep_global_batch
from minimind.training.setup.checks import CHECKS
from minimind.training.setup.draft import Draft
from minimind.training.setup.precision import with_precision
from minimind.training.setup.problems import Problems
from minimind.training.setup.sample_prompts import with_default_number
from minimind.training.setup.start_weights import (
    defaults_of,
    open_reference_weights,
    open_start_weights,
    weights_path,
    with_model_sizes,
)
from minimind.training.setup.tokenizers import load_tokenizer
from minimind.weights.adapters import AdapterSource, adapter_shapes
from minimind.weights.quantized import packed_weights
from minimind.weights.sources import WeightSource

# Flags that name sources of pairs, and all flags that name files or folders to read.
DATA_FLAGS = ("data_path", "eval_data_path")
_WEIGHT_FLAGS = ("from_weight", "from_adapter", "reference_weight")
PATH_FLAGS = (*DATA_FLAGS, "dataset_info", "tokenizer_path", *_WEIGHT_FLAGS, "deepspeed", "reference_config")
# Adapters start at 0 and are small, so they need far larger steps than MiniMind's default, which is for all weights.
ADAPTERS_RATE = 5e-6
_DS_CONFIGS = Path(__file__).resolve().parents[3] / "ds_configs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run's resolved settings and opened inputs.

    Attributes:
        settings: every setting resolved, with its origin.
        is_demo: the bundled demo runs.
        checkpoint: the checkpoint that the run resumes; None for a fresh run.
        objective: of the job: for pairs a loss, or a mix of losses.
        source: start weights.
        other_reference: weights of the reference; None: the start weights.
        adapters: what trains instead of the weights; None: the weights train.
    """

    settings: Settings
    is_demo: bool
    checkpoint: Checkpoint | None
    objective: AnyObjective
    source: WeightSource
    adapters: AdapterSource | None = None
    tokenizer: PreTrainedTokenizerBase
    policy_config: ResolvedConfig
    reference_config: ResolvedConfig
    other_reference: WeightSource | None = None

    @property
    def reference_source(self) -> WeightSource:
        """Weights of the reference."""
        return self.source if self.other_reference is None else self.other_reference


def prepare(
    settings: Settings, world: World, checkpoint: Checkpoint | None = None, *, without_bfloat16: bool = False
) -> Prepared:
    """Resolve everything that files, flags and the resumed checkpoint say about the run.

    Args:
        without_bfloat16: a rank's CPU has no instructions for bfloat16 (`precision.lacks_bfloat16`).

    Raises:
        ConfigError: all problems at once; a single problem keeps its own class.
    """
    problems = Problems()
    is_demo = _is_demo(settings.config)
    # Each stage can change settings that the next one reads: demo, schedule, weights, objective, DeepSpeed files.
    settings, source, model = _open_weights(settings, checkpoint, without_bfloat16, problems)
    choose = kind_of(settings.config).choose
    settings, objective = problems.attempt(lambda: choose(settings, model)) or (settings, None)
    tokenizer = problems.attempt(lambda: load_tokenizer(settings.config, source))
    settings, policy_config, reference_config = _resolve_engines(settings, world, checkpoint, problems)
    # After the DeepSpeed file, which may set the precision: DoRA starts from rounded weights.
    settings, adapters = _open_adapters(settings, source, policy_config, world, problems)
    # Checks come last, when all settings are final. They run even if a stage failed, to report everything at once.
    draft = Draft(
        settings=settings,
        world=world,
        is_demo=is_demo,
        source=source,
        other_reference=problems.attempt(lambda: open_reference_weights(settings.config)),
        tokenizer=tokenizer,
        engine_resolved=policy_config is not None,
        objective=objective,
    )
    _check(draft, problems)
    # Each is None only if it raised a problem.
    assert objective is not None and source is not None and tokenizer is not None  # noqa: PT018
    assert policy_config is not None and reference_config is not None  # noqa: PT018
    return Prepared(
        settings=_with_default_paths(settings, tokenizer),
        is_demo=is_demo,
        checkpoint=checkpoint,
        objective=objective,
        source=source,
        adapters=adapters,
        tokenizer=tokenizer,
        policy_config=policy_config,
        reference_config=reference_config,
        other_reference=draft.other_reference,
    )


def _check(draft: Draft, problems: Problems) -> None:
    """Raise all problems: those of the stages, and those that the checks find."""
    problems.extend(error for check in CHECKS for error in check(draft))
    problems.raise_if_any()


def _open_weights(
    settings: Settings, checkpoint: Checkpoint | None, without_bfloat16: bool, problems: Problems
) -> tuple[Settings, WeightSource | None, ModelDefaults | None]:
    """Settings with all that is implied and all that the start weights fix; these weights; the defaults that follow."""
    implied = with_implied(settings)
    settings = problems.attempt(lambda: choose_schedule(implied)) or implied
    source = problems.attempt(lambda: open_start_weights(settings.config))
    if source is None:
        return settings, None, None
    model = defaults_of(source) if checkpoint is None else defaults_of_run(checkpoint.manifest.identity)
    of_weights = dataclasses.replace(model, jobs=defaults_of(source).jobs)
    settings = with_model_defaults(with_model_sizes(settings, source), of_weights)
    return with_precision(settings, source, without_bfloat16, checkpoint), source, model


def _resolve_engines(
    settings: Settings, world: World, checkpoint: Checkpoint | None, problems: Problems
) -> tuple[Settings, ResolvedConfig | None, ResolvedConfig | None]:
    """Settings with what the DeepSpeed files fix, and the configurations of policy and reference."""
    policy = problems.attempt(lambda: _policy_config(settings, world, checkpoint))
    if policy is not None:
        settings = policy.settings
    return settings, policy, problems.attempt(lambda: _reference_config(settings, world))


def _open_adapters(
    settings: Settings, source: WeightSource | None, policy: ResolvedConfig | None, world: World, problems: Problems
) -> tuple[Settings, AdapterSource | None]:
    if source is None or policy is None:
        return settings, None
    return problems.attempt(lambda: open_adapters(settings, source, policy.values, world.device)) or (settings, None)


def trained_shapes(prepared: Prepared) -> dict[str, tuple[int, ...]] | None:
    """Shapes of the adapters that train; None: the weights train."""
    if prepared.adapters is None:
        return None
    return adapter_shapes(prepared.source.config, prepared.adapters.spec)


def policy_sizes(prepared: Prepared) -> ModelSizes:
    """Sizes of the policy, for a plan.

    Raises:
        WeightsError: the configuration lacks a required size.
    """
    source = prepared.source
    quantized = prepared.settings.config.adapters.quantize != NO_QUANTIZATION
    packed = packed_weights(source.config) if quantized else ()
    return ModelSizes.of(source.config, source.shapes(), trained_shapes(prepared), packed)


def with_implied(settings: Settings) -> Settings:
    """Settings with the values that the environment, the demo and other settings imply.

    Raises:
        ConfigError: a switch of the environment has a wrong value.
    """
    settings = with_switches(settings)
    # What comes later replaces what was implied before: the demo's learning rate that of adapters.
    adapted = settings.config.adapters.lora_rank is not None or settings.config.adapters.from_adapter is not None
    if adapted and settings.config.optimisation.learning_rate < ADAPTERS_RATE:
        settings = settings.with_defaults({"learning_rate": ADAPTERS_RATE}, "adapters")
    if _is_demo(settings.config):
        settings = settings.with_defaults(demo.SETTINGS | (demo.ADAPTER_SETTINGS if adapted else {}), DEMO)
    if streams(settings.config.data):
        settings = settings.with_defaults({"on_bad_row": SKIP}, STREAMING)
    if settings.config.data.on_bad_row == KEEP:
        settings = settings.with_defaults({"on_long_row": KEEP}, BAD_ROWS_KEPT)
    return with_default_number(settings)


def _is_demo(config: JobConfig) -> bool:
    return kind_of(config).has_demo and not config.data.data_path


def input_paths(config: JobConfig) -> dict[str, Path]:
    """The files and folders that a run will read, by the flag that names each; they need not exist."""
    named = {**vars(config.data), **vars(config.model), **vars(config.adapters), **vars(config.engine)}
    paths = {name: Path(named[name]) for name in PATH_FLAGS if name not in DATA_FLAGS and named[name]}
    for name in DATA_FLAGS:
        words = plain_words(named[name]) if name == "eval_data_path" else named[name]
        for number, path in enumerate(local_paths(words), start=1):
            paths[name if number == 1 else f"{name}, file {number},"] = path
    paths["from_weight"] = weights_path(config)
    paths["reference_config"] = reference_path(config)
    if not config.data.data_path or config.model.from_weight == "none":
        del paths["from_weight"]
    return {f"--{name}": path for name, path in paths.items()}


def cache_dir(config: JobConfig) -> Path:
    """Folder of tokenised data and cached reference log-probs.

    Raises:
        ConfigError: it is not given, and the user has no home directory.
    """
    if config.data.cache_dir:
        return Path(config.data.cache_dir)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minimind"
    except RuntimeError as error:
        raise ConfigError("there is no home directory (HOME) to cache tokenised data in; give --cache_dir") from error


def reference_path(config: JobConfig) -> Path:
    """The reference's DeepSpeed file."""
    given = config.engine.reference_config
    return Path(given) if given else _DS_CONFIGS / "reference.json"


def _policy_config(settings: Settings, world: World, checkpoint: Checkpoint | None) -> ResolvedConfig:
    if not settings.config.engine.deepspeed:
        raise ConfigError("--deepspeed FILE is missing, e.g. --deepspeed ds_configs/zero2.json")
    path = Path(settings.config.engine.deepspeed)
    if checkpoint is not None:
        # The file may fix a part of the batch. The checkpoint fills the rest before the file's total is compared.
        settings = keep_global_batch(take_batch(path, settings), checkpoint.manifest, world.size)
    return resolve_policy(path, settings, world.size, world.on_cpu)


def _reference_config(settings: Settings, world: World) -> ResolvedConfig:
    return resolve_reference(reference_path(settings.config), settings, world.size, world.on_cpu)


def _with_default_paths(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Settings:
    """Settings in which every path that was not given has the value that the run uses."""
    resolved = {
        "tokenizer_path": str(tokenizer.name_or_path),
        "reference_config": str(reference_path(settings.config)),
        "cache_dir": str(cache_dir(settings.config)),
    }
    missing = {name: path for name, path in resolved.items() if not settings.values.get(name, path)}
    return settings.with_values(missing, "default")

"""Start weights: where they are, and the model sizes that they fix.

--from_weight -> open_start_weights -> WeightSource -> with_model_sizes -> settings with the weights' own sizes
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from minimind.config import DEFAULT, WEIGHTS, JobConfig, ModelDefaults, Settings, model_defaults
from minimind.errors import ConfigError, WeightsError
from minimind.model.configuration import MiniMindConfig
from minimind.model.family import family_of, layer_values
from minimind.weights.inferred_config import NOT_IN_PTH
from minimind.weights.sources import RandomSource, WeightSource, open_weights

# Settings of the model that weights fix.
MODEL_SETTINGS = ("hidden_size", "num_hidden_layers", "use_moe", "generation", *NOT_IN_PTH)


def open_start_weights(config: JobConfig) -> WeightSource:
    """The start weights that --from_weight names.

    Raises:
        WeightsError: no such file or folder, or it cannot be read.
        ConfigError: fresh weights are asked for, of a model that cannot exist.
    """
    model = config.model
    given = _sizes_not_in_pth(config)
    if model.from_weight == "none":
        try:
            fresh = MiniMindConfig(
                generation=model.generation or 2,
                hidden_size=model.hidden_size,
                num_hidden_layers=model.num_hidden_layers,
                use_moe=model.use_moe,
                **given,
            )
        except ValueError as error:
            raise ConfigError(f"--from_weight none: {error}") from error
        return RandomSource(fresh, config.data.seed)
    path = weights_path(config)
    if not path.exists():
        raise WeightsError(
            f"--from_weight {model.from_weight}: no such file or folder, and MiniMind's short name would be {path}, "
            f"which does not exist{_others(path, model.from_weight)}; give a .pth, a Hugging Face folder or none"
        )
    return open_weights(path, given)


def open_reference_weights(config: JobConfig) -> WeightSource | None:
    """The weights that --reference_weight names; None: the reference has the start weights.

    Flags of sizes that a `.pth` does not contain are those of every `.pth` of the run.

    Raises:
        WeightsError: no such file or folder, or it cannot be read.
    """
    given = config.model.reference_weight
    if given is None:
        return None
    if not Path(given).exists():
        raise WeightsError(
            f"--reference_weight {given}: no such file or folder; give a .pth, a Hugging Face folder or a run's folder"
        )
    return open_weights(Path(given), _sizes_not_in_pth(config))


def _sizes_not_in_pth(config: JobConfig) -> dict[str, Any]:
    # A value of 0 or None means "not given".
    return {name: value for name in NOT_IN_PTH if (value := getattr(config.model, name))}


def _others(path: Path, name: str) -> str:
    """Files beside one that is missing, with the same short name and another size."""
    found = sorted(str(other) for other in path.parent.glob(f"{glob.escape(name)}_*.pth"))
    return f" ({', '.join(found)} does; see --hidden_size, --use_moe and --generation)" if found else ""


def weights_path(config: JobConfig) -> Path:
    """Path that --from_weight means: itself if it exists, else MiniMind's short name of a file in save_dir."""
    path = Path(config.model.from_weight)
    return path if path.exists() else Path(config.run.save_dir) / f"{_file_name(config, config.model.from_weight)}.pth"


def weights_name(config: JobConfig) -> str:
    """Name of the weights that the run writes, in MiniMind's form: name, hidden size, _moe for a mixture."""
    return _file_name(config, config.run.save_weight)


def adapter_name(config: JobConfig) -> str:
    """Name of the adapter that the run writes, in MiniMind's form: lora_, name, hidden size, _moe for a mixture."""
    return _file_name(config, f"lora_{config.run.save_weight}")


def _file_name(config: JobConfig, name: str) -> str:
    return f"{name}_{config.model.hidden_size}{'_moe' if config.model.use_moe else ''}"


def model_setting(source: WeightSource, name: str) -> Any:
    """A setting of the weights' model; None if it has none, or if its layers differ in it."""
    # The sizes of a composite model are those of its text half.
    values = layer_values(source.config.get_text_config(), name)
    return values[0] if all(value == values[0] for value in values) else None


def with_model_sizes(settings: Settings, source: WeightSource) -> Settings:
    """Settings with the sizes of the weights' model. Flags stay; a check compares them with the weights."""
    found = {name: model_setting(source, name) for name in MODEL_SETTINGS}
    if settings.config.model.from_weight == "none":
        # Sizes that a flag, or the generation that a flag names, has given keep their origin.
        found = {name: value for name, value in found.items() if settings.values[name] != value}
    origin = DEFAULT if settings.config.model.from_weight == "none" else WEIGHTS
    return settings.with_defaults({name: value for name, value in found.items() if value is not None}, origin)


def defaults_of(source: WeightSource) -> ModelDefaults:
    """The defaults that follow these weights: those of their MiniMind generation, or of a Hugging Face model."""
    return model_defaults(family_of(source.config).generation(source.config))

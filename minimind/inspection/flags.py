"""The flags of the preparing script: those of training, and its own.

argv -> read_flags -> OwnFlags, Settings
launcher's environment, OwnFlags -> ranks_of -> numbers of nodes and of ranks on each
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import NoReturn

from minimind.config import DPOConfig, Settings, parse_settings
from minimind.config.command_line import check_misspelt
from minimind.config.jobs import JOBS
from minimind.config.rows import streams
from minimind.errors import ConfigError
from minimind.plan.command import parse_size
from minimind.ranks.launchers import rank_variables

# Where launchers give the number of nodes: deepspeed, torchrun, srun.
_NODE_VARIABLES = ("CROSS_SIZE", "GROUP_WORLD_SIZE", "SLURM_NNODES")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnFlags:
    """The script's own flags; None for what was not given.

    Attributes:
        out: folder of the report and of split files.
        eval_share: share of the prompts that are held out.
        nodes, gpus_per_node: ranks of the run that is planned.
        gpu_memory: bytes of a rank's device.
        tokens_per_second: rate of the run, as an earlier one has logged it.
    """

    out: str
    eval_share: float | None
    nodes: int | None
    gpus_per_node: int | None
    gpu_memory: int | None
    tokens_per_second: float | None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the script's own flags."""
    parser = _Parser(
        prog="python launch/prepare_data.py",
        description="Look at the data of a run before it starts, write the tokenised cache that it will find, and "
        "print the command that trains.",
        epilog="All flags of the job's script (launch/train_dpo.py, train_sft.py, pretrain.py) are accepted too, with "
        "the same meaning: those about data, tokenizer and batches decide what is reported, and all of them are in the "
        "command that is printed.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--job",
        choices=tuple(JOBS),
        default=DPOConfig.name,
        help="job of the data: pairs (dpo), conversations (sft) or texts (pretrain) (default: dpo)",
    )
    parser.add_argument(
        "--out", default="out/prepare", help="folder of report.html, report.json and split files (default: out/prepare)"
    )
    parser.add_argument(
        "--eval_share",
        type=float,
        default=None,
        help="share of the prompts, or of the texts, to hold out, e.g. 0.02: their rows become the evaluation data, "
        "chosen by --seed",
    )
    parser.add_argument("--nodes", type=int, default=None, help="number of nodes of the run; without it the launcher's")
    parser.add_argument(
        "--gpus_per_node", type=int, default=None, help="ranks of the run on each node; without it the launcher's"
    )
    parser.add_argument(
        "--gpu_memory", default=None, help="memory of one GPU of the run, e.g. 80GiB; without it this machine's"
    )
    parser.add_argument(
        "--tokens_per_second",
        type=float,
        default=None,
        help="rate that an earlier run logged, for the planned time; without it tokens and steps only",
    )
    return parser


def read_flags(argv: Sequence[str]) -> tuple[OwnFlags, Settings]:
    """The flags of a command line.

    Raises:
        ConfigError: flags are unknown, out of range or contradict each other.
    """
    given, rest = build_parser().parse_known_args(list(argv))
    job = JOBS[given.job]
    check_misspelt(rest, own=vars(given), job=job)
    settings = parse_settings(rest, job)
    memory = None if given.gpu_memory is None else parse_size("gpu_memory", given.gpu_memory)
    own = OwnFlags(**{name: value for name, value in vars(given).items() if name != "job"} | {"gpu_memory": memory})
    counts = {"nodes": own.nodes, "gpus_per_node": own.gpus_per_node}
    problems = [f"--{name} {value} is below 1" for name, value in counts.items() if value is not None and value < 1]
    if own.eval_share is not None and not 0 < own.eval_share < 1:
        problems.append(f"--eval_share {own.eval_share:g} is not between 0 and 1")
    if own.tokens_per_second is not None and not 0 < own.tokens_per_second < float("inf"):
        problems.append(f"--tokens_per_second {own.tokens_per_second:g} is not above 0")
    data = settings.config.data
    if own.eval_share is not None and data.eval_data_path:
        problems.append("--eval_share makes evaluation data, and --eval_data_path gives them; drop one of them")
    elif own.eval_share is not None and not data.data_path:
        why = ": the demo has held-out pairs" if job is DPOConfig else ""
        problems.append(f"--eval_share needs --data_path{why}")
    if streams(data):
        problems.append(
            "--streaming 1: a report is about all rows, which a run that streams never has at once; look at some files "
            "of the data without --streaming, the run takes them all with it"
        )
    if problems:
        raise ConfigError.from_problems(problems)
    return own, settings


def ranks_of(own: OwnFlags, environ: Mapping[str, str]) -> tuple[int, int]:
    """Nodes of the run, and ranks on each: from the flags, else from the launcher that started this process.

    Raises:
        LaunchError: the launcher's environment is incomplete.
    """
    variables = {**rank_variables(environ), **environ}
    size = int(variables["WORLD_SIZE"])
    given = (int(environ[name]) for name in _NODE_VARIABLES if environ.get(name, "").isdecimal())
    nodes = own.nodes or (next(given, 1) if size > 1 else 1)
    return nodes, own.gpus_per_node or max(1, size // nodes)

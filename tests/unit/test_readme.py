"""The READMEs agree with the code, with each other, and with the files that they link to."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import minimind
from minimind.config import parse_settings
from minimind.data.shapes import registry
from minimind.model import family
from minimind.objective.losses import SigmoidLoss, loss_class
from minimind.objective.losses import registry as losses
from minimind.sweep.flags import LAUNCHER_SWITCHES, LAUNCHER_VALUES
from minimind.training import run
from minimind.training.jobs.answer_metrics import LENGTH_METRICS, TOKEN_METRICS
from tests.docs.language import ENGLISH, Language, chinese
from tests.docs.losses import texts as loss_texts
from tests.docs.models import reasons
from tests.docs.pages import FOLDERS, REPO, pages, parts, regenerate
from tests.docs.tables import FlagRow, every_flag, flag_tables
from tests.docs.tree import descriptions, first_sentence

PAGES = pages()
NAMES = [str(path.relative_to(REPO)) for path, _ in PAGES]
every_page = pytest.mark.parametrize(("path", "language"), PAGES, ids=NAMES)
every_folder = pytest.mark.parametrize("folder", FOLDERS)

# Flags of launchers and of other scripts that the READMEs mention.
OTHER_FLAGS = {
    *LAUNCHER_VALUES,  # deepspeed
    *LAUNCHER_SWITCHES,
    "shm-size",  # docker
    *("nnodes", "nproc-per-node", "node-rank", "master-addr", "master-port"),  # torchrun
    *("data", "tokenizer", "steps", "rounds", "out", "runs", "memory", "peers"),  # tests/benchmarks
    *("index-url", "logdir", "help"),  # pip, tensorboard
    "repo-type",  # of hf download
}


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def twins(folder: str) -> tuple[str, str]:
    return read(REPO / folder / "README.md"), read(REPO / folder / "README_zh.md")


def without_code(text: str) -> str:
    """A README without fenced and indented blocks, whose lines are no Markdown."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)


def headings(text: str) -> list[tuple[int, str]]:
    """(level, title) of each heading."""
    return [(len(marks), title) for marks, title in re.findall(r"^(#+) (.*)$", without_code(text), re.MULTILINE)]


def anchor(title: str) -> str:
    """The address of a heading as GitHub makes it: letters, digits and hyphens; a space becomes a hyphen."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


# Generated parts


@every_page
def test_generated_parts_are_up_to_date(path, language):
    assert read(path) == regenerate(read(path), language), "run `make docs`"


@pytest.mark.parametrize("suffix", ["", "_zh"])
def test_flags_and_tree_are_generated(suffix):
    assert parts(read(REPO / f"launch/README{suffix}.md")) == [
        "prepare flags",
        "defaults",
        "flags",
        "report flags",
        "losses",
        "loss options",
        "chain flags",
        "pretrain flags",
        "sft flags",
        "plan flags",
        "export flags",
        "chat flags",
        "evaluate flags",
    ]
    assert parts(read(REPO / f"minimind/README{suffix}.md")) == ["models", "tree"]


def test_every_flag_has_a_chinese_text():
    assert chinese().missing(flag.help for flag in every_flag()) == []


def test_every_reason_of_the_table_of_models_has_a_chinese_text():
    assert chinese().missing(reasons()) == []


def test_every_text_of_the_tables_of_losses_has_a_chinese_text():
    assert chinese().missing(loss_texts()) == []


def test_no_chinese_text_is_left_over():
    flags = (flag.help for flag in every_flag())
    texts = [*flags, *descriptions().values(), *reasons(), *loss_texts()]
    assert chinese().unused(texts) == []


def test_regenerate_replaces_only_what_is_between_the_marks():
    text = "before\n<!-- generated: plan flags -->\nold\n<!-- end -->\nafter\n"
    new = regenerate(text, ENGLISH)
    assert new.startswith("before\n<!-- generated: plan flags -->\n| flag | default | meaning |\n")
    assert new.endswith("\n<!-- end -->\nafter\n")
    assert "old" not in new
    assert regenerate(new, ENGLISH) == new


def test_a_mark_for_a_part_that_does_not_exist_is_an_error():
    with pytest.raises(KeyError):
        regenerate("<!-- generated: nothing -->\n<!-- end -->", ENGLISH)


def test_flag_tables_have_a_heading_per_section_and_list_unexplained_choices():
    rows = [
        FlagRow(name="a", section="First", default="x", choices=("x", "y"), help="x: one; y: <two>"),
        FlagRow(name="b", section="First", default=None, choices=(), help="a | b"),
        FlagRow(name="c", section="Second", default=0, choices=(0, 7), help="a number"),
    ]
    assert flag_tables(rows, ENGLISH) == [
        "### First",
        "",
        "| flag | default | meaning |",
        "| --- | --- | --- |",
        "| `--a` | `x` | x: one; y: &lt;two> |",
        "| `--b` |  | a \\| b |",
        "",
        "### Second",
        "",
        "| flag | default | meaning |",
        "| --- | --- | --- |",
        "| `--c` | `0` | a number; one of: `0`, `7` |",
    ]


def test_flag_tables_take_translations_and_keep_texts_without_one():
    language = Language(suffix="_xx", translations={"old": "alt", "flag": "F"}, colon=": ", comma=", ", semicolon=";")
    rows = [
        FlagRow(name="a", section="", default=1, choices=(), help="old"),
        FlagRow(name="b", section="", default=1, choices=(), help="new"),
    ]
    lines = flag_tables(rows, language)
    assert lines[0] == "| F | default | meaning |"
    assert lines[2:] == ["| `--a` | `1` | alt |", "| `--b` | `1` | new |"]
    assert language.missing(["old", "new", "new", ""]) == ["new"]
    assert language.unused(["new"]) == ["old"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.py", '"""Reads `.pth` files. Then more.\n\nSecond paragraph.\n"""\n', "Reads `.pth` files"),
        ("a.py", '"""Goes over\ntwo lines: a, b."""\n', "Goes over two lines: a, b"),
        ("a.py", "import os\n", ""),
        ("a.h", "// Multiplies by 0.5\n// in one pass. Then more.\n#include <x>\n", "Multiplies by 0.5 in one pass"),
    ],
)
def test_first_sentence(name, text, expected, tmp_path):
    (tmp_path / name).write_text(text)
    assert first_sentence(tmp_path / name) == expected


def test_tree_lists_folders_before_their_files():
    names = list(descriptions())
    assert names.index("data/") < names.index("data/rows.py") < names.index("engine/")
    assert "native/kernels.cpp" in names
    assert not any(name.endswith("__init__.py") for name in names)


# Links, flags and metrics


@every_page
def test_links_lead_somewhere(path, language):
    for target in re.findall(r"\]\(([^)]+)\)", without_code(read(path))):
        name, _, fragment = target.partition("#")
        assert not name.startswith("http"), f"{target}: external links are not checked; leave them out"
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), target
        if fragment:
            assert fragment in {anchor(title) for _, title in headings(read(linked))}, target


@every_page
def test_chinese_pages_link_to_chinese_pages(path, language):
    """Apart from the link at the top that changes the language."""
    other = "README.md" if language.suffix else "README_zh.md"
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", without_code(read(path)))]
    linked = [target for target in targets if target.endswith(other) and "tests/README" not in target]
    assert linked == [other]


@every_page
def test_flags_that_are_mentioned_exist(path, language):
    known = {flag.name for flag in every_flag()} | OTHER_FLAGS
    assert set(re.findall(r"(?<![\w-])--([a-z][\w-]*)", read(path))) - known == set()


@pytest.mark.parametrize("suffix", ["", "_zh"])
def test_metrics_are_those_of_a_run(suffix):
    table = read(REPO / f"launch/README{suffix}.md").split("`aux_loss`")[0].rsplit("\n\n", 1)[1]
    section = read(REPO / f"launch/README{suffix}.md").split(table)[1]
    rows = re.findall(r"^\| (`.*?) \|", table + section.split("\n\n")[0], re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`([\w/]+)`", row)}
    rates = {"grad_norm", "grad_clipped", "learning_rate", "moved/NAME", "experts/dead", "experts/busiest"}
    rates |= {"tokens_per_second", "pairs_per_second", "tokens_per_second_per_rank", "mfu", "experts/tokens"}
    phases = ("step", "data", "reference", "forward", "backward", "optimizer")
    rates |= {"memory_gib", "peak_memory_gib", *(f"time/{phase}" for phase in phases)}
    losses = {*SigmoidLoss.metrics, *loss_class("kto").metrics}
    answers = {*LENGTH_METRICS, *TOKEN_METRICS}
    assert listed == {"loss", "dpo_loss", "aux_loss", "loss/NAME"} | losses | answers | rates


@pytest.mark.parametrize("suffix", ["", "_zh"])
def test_every_deepspeed_file_is_described(suffix):
    text = read(REPO / f"ds_configs/README{suffix}.md")
    for path in (REPO / "ds_configs").glob("*.json"):
        assert len(re.findall(rf"^\| `{path.name}` \|", text, re.MULTILINE)) == 2, path.name
    for name in re.findall(r"`(\w+\.json)`", text):
        assert (REPO / "ds_configs" / name).exists(), name


# Twins


@every_folder
def test_twins_have_the_same_sections(folder):
    english, translated = twins(folder)
    assert [level for level, _ in headings(english)] == [level for level, _ in headings(translated)]


@every_folder
def test_twins_have_the_same_numbers_in_their_tables(folder):
    def numbers(text: str) -> list[list[str]]:
        rows = re.findall(r"^\|.*\|$", without_code(text), re.MULTILINE)
        # Not of the generated tables, whose texts are translated freely, and whose drift another test finds.
        rows = [row for row in rows if not row.startswith("| `--")]
        return [sorted(re.findall(r"\d+(?:[.,]\d+)*", row)) for row in rows]

    english, translated = twins(folder)
    assert numbers(english) == numbers(translated)


@every_folder
def test_twins_have_the_same_commands(folder):
    def commands(text: str) -> list[str]:
        lines = re.findall(r"^ {4}(?:make|deepspeed|torchrun|sbatch|python|import)(?: .*)?$", text, re.MULTILINE)
        return [re.split(r"\s+#", line)[0] for line in lines]

    english, translated = twins(folder)
    assert commands(english) == commands(translated)


# The first page


@pytest.mark.parametrize("suffix", ["", "_zh"])
def test_first_page_is_short(suffix):
    assert len(read(REPO / f"README{suffix}.md").splitlines()) <= 150


@pytest.mark.parametrize("suffix", ["", "_zh"])
def test_figures_of_the_first_page_are_those_of_the_benchmarks(suffix):
    def rows(name: str) -> dict[str, list[str]]:
        found = re.findall(r"^\| (\S.*?) \|(.*GiB) \|$", read(REPO / name), re.MULTILINE)
        return {trainer: re.findall(r"\d+\.?\d*x?", rest.replace("x）", "x")) for trainer, rest in found}

    first, all_rows = rows(f"README{suffix}.md"), rows(f"tests/benchmarks/README{suffix}.md")
    assert len(first) == 5
    for trainer, figures in first.items():
        # The page of the benchmarks adds to some names, after a comma.
        full = all_rows.get(trainer) or next(cells for name, cells in all_rows.items() if name.startswith(trainer))
        assert figures == full, trainer


# Worked examples of minimind/README.md


def examples(suffix: str) -> dict[str, str]:
    """Heading -> the Python block below it."""
    text = read(REPO / f"minimind/README{suffix}.md")
    return dict(re.findall(r"^### ([^\n]*)\n(?:(?!^#).)*?^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


EXAMPLES = examples("")
SCRIPT = "A launch script"


def test_every_kind_of_addition_has_an_example():
    kinds = ["A loss", "A metric", "A row shape", "A listener", "A model family's quirk", SCRIPT]
    assert list(EXAMPLES) == kinds
    assert list(examples("_zh").values()) == list(EXAMPLES.values())


@pytest.mark.parametrize("heading", [heading for heading in EXAMPLES if heading != SCRIPT])
def test_example_runs(heading, monkeypatch):
    # Copies of the tables, so that what an example registers does not outlive it.
    monkeypatch.setattr(losses, "_LOSSES", dict(losses._LOSSES))
    monkeypatch.setattr(registry, "SHAPES", dict(registry.SHAPES))
    monkeypatch.setattr(family, "FAMILIES", dict(family.FAMILIES))
    assert "assert " in EXAMPLES[heading]
    exec(compile(EXAMPLES[heading], f"<{heading}>", "exec"), {"__name__": "__main__"})


def test_example_of_a_launch_script_passes_its_flags_to_the_job(monkeypatch):
    started: list[list[str]] = []
    monkeypatch.setattr(run, "main", started.append)
    monkeypatch.setattr(sys, "argv", ["launch/train_dpo_float32.py", "--beta", "0.2"])
    exec(compile(EXAMPLES[SCRIPT], f"<{SCRIPT}>", "exec"), {"__name__": "__main__"})
    (argv,) = started
    config = parse_settings(argv).config
    assert (config.optimisation.dtype, config.objective.beta) == ("float32", 0.2)


@pytest.mark.parametrize("suffix", ["", "_zh"])
def test_names_in_the_python_section_are_public(suffix):
    text = read(REPO / f"minimind/README{suffix}.md")
    names = set(re.findall(r"\bminimind\.(\w+)\(", text))
    assert len(names) >= 6
    assert [name for name in names if not hasattr(minimind, name)] == []

"""Options are stated once: the command line and the configurations are made from them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from catwise._configs import EvolutionConfig, FixConfig, PaperConfig, TuneConfig
from catwise._options import check_options, described, group, option
from catwise.cli import main
from catwise.cli.building import MOST_USED, as_options, make_command, option_names
from catwise.cli.main import COMMANDS
from catwise.errors import ConfigError


def sections(name: str) -> dict[str, list[str]]:
    """The long names of the options under each heading of a command's help."""
    text = CliRunner().invoke(main, [name, "--help"], terminal_width=200).output
    found: dict[str, list[str]] = {}
    heading = ""
    for line in text.splitlines():
        if re.fullmatch(r"\S.*:", line):
            heading = line[:-1]
        elif names := re.match(r"  (?:-\w, )?(--[\w-]+)", line):
            found.setdefault(heading, []).append(names[1])
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_groups(name: str) -> None:
    """At most ten options stand first, the required ones ahead; every option stands once."""
    shown = sections(name)
    assert next(iter(shown)) == MOST_USED
    assert len(shown[MOST_USED]) <= 10
    command = main.get_command(click.Context(main), name)  # type: ignore[attr-defined]
    options = [one for one in command.params if isinstance(one, click.Option)]
    every = [next(o for o in p.opts if o.startswith("--")) for p in options]
    assert sorted(one for names in shown.values() for one in names) == sorted([*every, "--help"])
    required = [p.opts[0] for p in options if p.required]
    assert set(shown[MOST_USED][: len(required)]) == set(required)


@pytest.mark.parametrize("name", ["tune", "fix"])
def test_every_option_of_the_preset_paper_is_there(name: str) -> None:
    """Those of back-propagation and of the genetic algorithm."""
    assert set(sections(name)["Preset paper"]) == {
        "--lr", "--steps", "--patience", "--recalibrate", "--population", "--selection",
        "--crossover", "--mutation-probability", "--mutation-scale", "--elite",
    }  # fmt: skip


# ---------------------------------------------------------------------- made from dataclasses


@described
@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    """Options inside others."""

    share: float = option(0.5, above=0, below=1, help="Of all.")
    names: tuple[str, ...] | None = option(None, names="--name", help="Repeatable.")
    path: Path | None = option(None, prefixed=True, help="A file.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    """All kinds."""

    inner: Inner = group("Inside", prefix="my-")
    place: Path | str = option(help="A folder or an URL.")
    kind: str = option("a", choices=("a", "b"), help="Which.")
    n: int | None = option(None, low=1, high=3, help="How many.")
    on: bool | None = option(None, names="--on/--off", help="Whether.")


def given(*arguments: str) -> Any:
    found = []

    def function(options: Outer) -> None:
        """Do it."""
        found.append(options)

    result = CliRunner().invoke(make_command("it", "it")(function), arguments)
    return found[0] if found else result.output


def test_a_command_is_made_from_a_dataclass() -> None:
    """Types, defaults, choices, repeats, switches, prefixes and what is in another dataclass."""
    assert given("--place", "x") == Outer(inner=Inner(), place=Path("x"))
    found = given("--place", "s3://a/b", "--name", "a", "--name", "b", "--my-path", "p", "--kind",
                  "b", "--n", "3", "--off", "--share", "0.25")  # fmt: skip
    inner = Inner(share=0.25, names=("a", "b"), path=Path("p"))
    assert found == Outer(inner=inner, place="s3://a/b", kind="b", n=3, on=False)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Missing option '--place'"),
        (["--place", "x", "--n", "4"], "4 is not in the range 1<=x<=3"),
        (["--place", "x", "--share", "1"], "0<x<1"),
        (["--place", "x", "--kind", "c"], "is not one of 'a', 'b'"),
    ],
)
def test_a_command_refuses(arguments: list[str], told: str) -> None:
    """What is missing, out of range, or no choice."""
    assert told in given(*arguments)


def test_the_docstring_names_every_option() -> None:
    """With help and range."""
    assert str(Inner.__doc__).endswith(
        "Args:\n    share: Of all. (share in (0, 1))\n    names: Repeatable.\n    path: A file."
    )
    assert "    lr: bp_bce, bp_asl: Adam's step size. (lr > 0)\n" in str(PaperConfig.__doc__)
    assert "    operators: the options of `EvolutionConfig`.\n" in str(PaperConfig.__doc__)
    assert str(PaperConfig.__doc__).endswith(
        "Raises:\n    ConfigError: If an option is out of range."
    )


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        (PaperConfig, {"lr": 0.0, "max_steps": 0}, "lr > 0; max_steps >= 1"),
        (PaperConfig, {"lr": float("nan")}, "lr > 0"),
        (PaperConfig, {"lr": float("inf")}, "lr > 0"),
        (EvolutionConfig, {"crossover": 1.5}, r"crossover in \[0, 1\]"),
        (EvolutionConfig, {"n_elite": 50}, "n_elite < population_size"),
        (EvolutionConfig, {"selection": "rnk"}, "did you mean 'rank'"),
        (TuneConfig, {"seed": -1}, "seed >= 0"),
        (FixConfig, {"workers": -1}, "workers >= 0"),
        (FixConfig, {"methods": ("bp_bce", "sga")}, "'sga'"),
        (TuneConfig, {"paper": PaperConfig(patience=5)}, "takes no options of the preset 'paper'"),
        (
            TuneConfig,
            {"paper": PaperConfig(lr=0.5, operators=EvolutionConfig(n_elite=2))},
            "found:    lr=0.5, n_elite=2\n",
        ),
    ],
)
def test_configurations_check_themselves(kind: type, options: dict[str, Any], told: str) -> None:
    """Ranges, choices, and what belongs to the other preset; all broken rules at once."""
    with pytest.raises(ConfigError, match=told):
        kind(**options)


def test_messages_speak_the_language_of_the_command_line() -> None:
    """Python's arguments become the options of the command; what has no option stays."""
    names = option_names(main.get_command(click.Context(main), "tune"))  # type: ignore[attr-defined]
    text = "replace it with --overwrite (overwrite=True): preset='paper', n_elite=3, max_steps=5"
    assert as_options(text, names) == (
        "replace it with --overwrite: --preset paper, --elite 3, --steps 5"
    )
    assert as_options("methods=['ga', 'bp_bce']", names) == "--method ga --method bp_bce"
    for kept in ("valid=None", "amp='auto'", "--seed=3"):
        assert as_options(kept, names) == kept
    result = CliRunner().invoke(
        main, ["tune", "--features", "f", "--labels", "l", "--head", "h", "--out", "o", "--preset",
               "paper"]
    )  # fmt: skip
    assert "found:    valid=None with --preset paper, --validation select" in result.stderr


def test_options_without_a_range_are_not_checked() -> None:
    """None is allowed where it is the default."""
    check_options("options", Inner())


def test_what_fix_tells_tune_and_extract() -> None:
    """Every option of its configuration is passed on; those of the paper with its preset alone."""
    paper = PaperConfig(max_steps=3)
    config = FixConfig(preset="paper", methods=("ga",), paper=paper, seed=4, workers=2, flips=True)
    assert config.tuning() == {
        "metric": "average_precision", "preset": "paper", "methods": ["ga"], "validation": None,
        "seed": 4, "force": False, "policy": None, "config": paper,
    }  # fmt: skip
    assert config.extraction() == {
        "batch_rows": 64, "num_workers": 2, "flips": True, "device": None, "undecodable": "refuse",
        "precision": "exact", "compiled": False,
    }  # fmt: skip
    assert "config" not in FixConfig().tuning()

"""`catwise compare`: runs side by side."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from catwise._names import METRICS, POOLS, UNITS
from catwise._options import group, option
from catwise.cli.building import make_command
from catwise.cli.console import Output
from catwise.cli.inputs import check_device, describe_features, load_source, refuse_inputs
from catwise.cli.labelled import (
    describe_labels,
    known_categories,
    load_chosen,
    with_cell_labels,
)
from catwise.cli.options import (
    CHOSEN_HELP,
    CSV_HELP,
    DEVICE_HELP,
    FEATURES_HELP,
    FORCE_HELP,
    REPORT_HELP,
    FileKeys,
    LabelFiles,
    MatchOptions,
    SourceOptions,
    TableOptions,
)
from catwise.cli.outputs import hold_output
from catwise.cli.pages import write_page

if TYPE_CHECKING:
    from catwise.labels import ChosenCells
    from catwise.reporting.comparing import RunComparison

_SIDE_BY_SIDE: Final = 4
"""Runs at most whose categories stand side by side on a terminal."""
_DEFAULT_METRICS: Final = ("average_precision", "auroc")


@dataclass(frozen=True, kw_only=True)
class TestRows(LabelFiles, FileKeys):
    """Labelled rows, or none."""

    features: Path | str | None = option(
        None, first=True, help=f"Test rows, on which all runs are compared. {FEATURES_HELP}"
    )
    split: str | None = option(None, metavar="VALUE", help="Only the rows of this split.")

    def __post_init__(self) -> None:
        labelled = self.labels is not None or self.dataset is not None
        if (self.features is None) != (not labelled):
            raise click.UsageError("test rows need --features, and --labels or --dataset.")

    @property
    def source(self) -> SourceOptions | None:
        """What reads them."""
        if self.features is None:
            return None
        return SourceOptions(**{item.name: getattr(self, item.name) for item in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise compare` is given."""

    runs: tuple[Path, ...] = option((), positional=True, metavar="RUN...")
    data: TestRows = group("Test rows")
    table: TableOptions = group("Label tables")
    match: MatchOptions = group("Label tables")
    against: str | None = option(
        None,
        metavar="RUN",
        first=True,
        help="The run that the others are compared with, or a head; with test rows.  "
        "[default: the first run]",
    )
    metrics: tuple[str, ...] = option(
        _DEFAULT_METRICS,
        names="--metric",
        choices=METRICS,
        help=f"Repeatable; with test rows.  [default: {', '.join(_DEFAULT_METRICS)}]",
    )
    by: str = option(
        "image",
        choices=UNITS,
        help="What is scored as one. study: images in one folder; patient: of one group.",
    )
    pool: str = option(
        "mean", choices=POOLS, help="How the probabilities of its images become one."
    )
    chosen: tuple[Path, ...] = option((), metavar="FILE", help=CHOSEN_HELP)
    level: float = option(0.95, above=0, below=1, help="Of the intervals.")
    device: str | None = option(None, help=DEVICE_HELP)
    force: bool = option(default=False, help=FORCE_HELP)
    csv_path: Path | None = option(
        None, names="--csv", metavar="FILE", first=True, help=f"{CSV_HELP[:-1]}: every number."
    )
    markdown: Path | None = option(
        None, metavar="FILE", first=True, help="Write the tables in Markdown."
    )
    latex: Path | None = option(
        None, metavar="FILE", first=True, help="Write the tables in LaTeX (package booktabs)."
    )
    report: Path | None = option(None, metavar="FILE", help=REPORT_HELP)
    output: Output = group("Output")

    def __post_init__(self) -> None:
        if len(self.runs) < 2:
            raise click.UsageError("give two runs or more.")
        if self.against is not None and self.data.features is None:
            raise click.UsageError("--against needs test rows: --features and --labels.")
        if self.chosen and self.data.features is None:
            raise click.UsageError("--chosen needs test rows: --features and --labels.")


@make_command("compare", "Compare runs: differences, seeds, settings.")
def command(given: Options) -> None:
    """Compare runs of `tune`, `select` or `fix`, category by category and in the mean.

    With test rows every run is compared with the first one, or with --against, on the same rows, by
    paired intervals. Without them each is shown against its own original head, as it was judged on
    its test rows. Runs that differ by the seed only are one line: mean ± standard deviation over
    seeds. What their settings differ in stands beside it.
    """
    output = given.output
    check_device(given.device)
    from catwise.reporting.run import RUN_FILES

    files = [run / name for run in given.runs for name in RUN_FILES]
    for path in (given.csv_path, given.markdown, given.latex, given.report):
        if path is not None:
            refuse_inputs(path, given.data.features, given.data.labels, *files)
        hold_output(path)
    chosen = load_chosen(given.chosen)
    data, by, inputs = _test_rows(given, chosen)
    from catwise.reporting.comparing import compare_runs

    with output.progress() as progress:
        found = compare_runs(
            [str(path) for path in given.runs],
            data,
            against=_against(given),
            metrics=tuple(dict.fromkeys(given.metrics)),
            by=by,
            pool=given.pool,
            chosen=chosen,
            level=given.level,
            device=given.device,
            force=given.force,
            progress=progress,
        )
    _write(given, found)
    if given.report is not None:
        write_page(given.report, found, inputs, output)
    _show(given, found)
    runs = [str(path) for path in given.runs]
    output.document({"command": "compare", "runs": runs, "inputs": inputs, **found.to_dict()})


def _test_rows(given: Options, chosen: ChosenCells | None) -> tuple[Any, Any, dict[str, Any]]:
    """Features and labels, what is scored as one, and where they are from; none without test rows.

    Categories are those of the first run's head.
    """
    source, output = given.data.source, given.output
    if source is None:
        return None, None, {}
    from catwise.heads import load_head

    features, labels, by, _ = load_source(source, given.table, given.by)
    labels = with_cell_labels(labels, chosen, output)
    how = given.match.unknown_categories
    if how == "ignore":
        head = load_head(given.runs[0] / "head.safetensors")
        labels = known_categories(labels, head.categories, how, output)
    inputs = {
        "features": describe_features(source.features, features),
        "labels": describe_labels(source, labels, given.table),
    }
    return (features, labels), by, inputs


def _against(given: Options) -> Any:
    """The name of a run, or a head from a file."""
    if given.against is None:
        return None
    from catwise.reporting.comparing import run_names

    paths = [str(path) for path in given.runs]
    names = dict(zip(paths, run_names(paths), strict=True))
    if given.against in names or given.against in names.values():
        return names.get(given.against, given.against)
    if Path(given.against).is_file():
        from catwise.heads import read_head

        return read_head(given.against)
    return given.against


def _grids(found: RunComparison, limit: int, most: int = 0) -> list[Any]:
    """Each metric's runs, what they differ in, and the categories by the first metric."""
    from catwise.reporting.comparing import ORIGINAL
    from catwise.reporting.tables import run_categories_grid, settings_grid, variants_grid

    grids = [
        variants_grid(found.variants, metric, reference=found.reference) for metric in found.metrics
    ]
    settings = settings_grid(found.variants)
    grids += [settings] if settings.cells else []
    names = {row["run"] for row in found.rows}
    own = None if found.reference in names or found.reference == ORIGINAL else found.reference
    metric = found.metrics[0]
    return [*grids, run_categories_grid(found.rows, metric, reference=own, limit=limit, most=most)]


def _write(given: Options, found: RunComparison) -> None:
    """Every file that was asked for."""
    from catwise._csv import rows_csv
    from catwise._io import write_text
    from catwise.reporting.tables import as_latex, as_markdown

    if given.csv_path is not None:
        write_text(given.csv_path, rows_csv(found.rows))
    for path, write in ((given.markdown, as_markdown), (given.latex, as_latex)):
        if path is not None:
            texts = [write(grid) for grid in _grids(found, 0)]
            notes = [] if write is as_latex else [f"{note}\n" for note in found.notes]
            write_text(path, "\n".join([*texts, *notes]))


def _show(given: Options, found: RunComparison) -> None:
    """The tables, and what they show in sentences."""
    from catwise.reporting.tables import as_terminal

    for grid in _grids(found, given.output.rows, _SIDE_BY_SIDE):
        given.output.table(as_terminal(grid))
    for line in (*found.sentences(), *found.notes):
        given.output.line(line)

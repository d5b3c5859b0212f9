"""`catwise simulate`: drop labels by the published protocols, or by a saved mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from catwise.cli.labelled import describe_labels, load_dataset
from catwise.cli.options import (
    labelled_options,
    output_options,
    path_type,
    seed_option,
    table_options,
)
from catwise.cli.outputs import hold_output
from catwise.cli.tables import TableWriter, written_table_options
from catwise.errors import OutputError

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.cli.console import Output
    from catwise.cli.options import LabelledOptions, TableOptions
    from catwise.labels import PartialLabels

__all__ = ["command"]

DRAW_NAMES: Final = ("keyed", "mlcpl", "matrix")
"""Written here a second time, since their home loads numpy; a test compares them."""
SERIES: Final = tuple(i / 10 for i in range(1, 10))
MASK_ENDING: Final = ".mask.safetensors"


@dataclass(frozen=True, slots=True)
class Step:
    """One choice of labels: what its files are called, and how it is made."""

    stem: str
    protocol: dict[str, Any]
    mask: Path | None = None
    corrected: bool = False

    def kept(self, full: PartialLabels) -> PartialLabels:
        """The labels that stay."""
        from catwise.data import apply_mask
        from catwise.labels import drop_uniform, keep_per_category, keep_single_positive

        if self.mask is not None:
            return apply_mask(self.mask, full, same_labels=not self.corrected)
        name, seed = self.protocol["name"], self.protocol["seed"]
        if name == "drop_uniform":
            draws = self.protocol.get("draws", "keyed")
            return drop_uniform(full, self.protocol["keep"], seed, draws=draws)
        if name == "keep_per_category":
            return keep_per_category(full, self.protocol["n"], seed)
        return keep_single_positive(full, seed)


@click.command("simulate", short_help="Drop labels by a published protocol.")
@labelled_options
@table_options
@click.option(
    "--keep",
    type=click.FloatRange(0, 1),
    multiple=True,
    metavar="SHARE",
    help="Keep each label with this probability (repeatable; what 0.1 keeps, 0.2 keeps too).",
)
@click.option("--series", is_flag=True, help="--keep 0.1, 0.2, … 0.9, as the field reports them.")
@click.option(
    "--draws",
    type=click.Choice(DRAW_NAMES),
    default="keyed",
    show_default=True,
    help="How --keep and --series draw. mlcpl and matrix: the stream of published code, which with "
    "its seed (526 and 0) keeps the same labels.",
)
@click.option(
    "--n",
    type=click.IntRange(min=0),
    multiple=True,
    metavar="N",
    help="Keep N positives and N negatives of each category (repeatable, nested).",
)
@click.option("--single-positive", is_flag=True, help="Keep one positive of each row, no more.")
@click.option("--mask", type=path_type(), metavar="FILE", help="Keep what a saved mask keeps.")
@click.option(
    "--corrected",
    is_flag=True,
    help="With --mask: the labels were corrected since; keep what stands at its places now.",
)
@seed_option
@click.option(
    "--out", type=path_type(), required=True, metavar="DIR", help="Where tables and masks shall be."
)
@written_table_options
@click.option("--dry-run", is_flag=True, help="Say what would stay; write nothing.")
@click.option("--force", is_flag=True, help="Replace files of these names that differ.")
@output_options
def command(
    *,
    source: LabelledOptions,
    table: TableOptions,
    keep: tuple[float, ...],
    series: bool,
    draws: str,
    n: tuple[int, ...],
    single_positive: bool,
    mask: Path | None,
    corrected: bool,
    seed: int,
    out: Path,
    out_encoding: str,
    out_layout: str,
    dry_run: bool,
    force: bool,
    output: Output,
) -> None:
    """Drop labels by the published protocols, and save what stays.

    For each protocol DIR gets a label table and a mask: a small file that says which labels stay
    and applies to the same labels wherever they are (--mask). The same seed gives the same masks,
    checksum for checksum. Draws hang on the names of categories and the ids of rows, not on their
    order, unless --draws names a published stream.
    """
    if corrected and mask is None:
        raise click.UsageError("--corrected belongs to --mask.")
    shares = [*dict.fromkeys([*keep, *(SERIES if series else ())])]
    asked = [bool(shares), bool(n), single_positive, mask is not None]
    if sum(asked) != 1:
        raise click.UsageError(
            "give one of --keep SHARE or --series, --n N, --single-positive, --mask FILE."
        )
    if draws != "keyed" and not shares:
        raise click.UsageError("--draws belongs to --keep and --series.")
    steps = _steps(shares, n, mask, seed, draws=draws, corrected=corrected)
    dataset = load_dataset(source, table)
    writer = TableWriter(dataset, table, source, out_encoding, out_layout)
    writer.check(dataset.labels if shares else steps[-1].kept(dataset.labels))
    if not dry_run:
        _make_folder(out, steps, source)
        hold_output(out, inside=True)
    files = [
        _carry_out(step, writer, out, dry_run=dry_run, force=force, output=output) for step in steps
    ]
    if dry_run:
        output.line("dry run: nothing was written")
    else:
        output.line(f"read them with: catwise audit --labels TABLE {writer.reading}")
    output.document(
        {
            "command": "simulate",
            "dry_run": dry_run,
            "inputs": {"labels": describe_labels(source, dataset.labels, table)},
            "encoding": out_encoding,
            "layout": out_layout,
            "columns": writer.columns,
            "files": files,
        }
    )


def _steps(
    shares: list[float],
    n: tuple[int, ...],
    mask: Path | None,
    seed: int,
    *,
    draws: str,
    corrected: bool,
) -> list[Step]:
    if mask is not None:
        from catwise.data import read_mask

        protocol = read_mask(mask).protocol
        return [Step(mask.name.removesuffix(MASK_ENDING), protocol, mask, corrected)]
    if shares:
        said, end = ({}, "") if draws == "keyed" else ({"draws": draws}, f"_{draws}")
        return [
            Step(
                f"uniform_{share}_seed{seed}{end}",
                {"name": "drop_uniform", "keep": share, "seed": seed, **said},
            )
            for share in sorted(shares)
        ]
    if n:
        return [
            Step(
                f"per_category_{number}_seed{seed}",
                {"name": "keep_per_category", "n": number, "seed": seed},
            )
            for number in sorted(set(n))
        ]
    return [Step(f"single_positive_seed{seed}", {"name": "keep_single_positive", "seed": seed})]


def _make_folder(out: Path, steps: list[Step], source: LabelledOptions) -> None:
    """Make the folder where there is none; refuse to replace what is read."""
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the folder '{out}'.", found=error.strerror, remedy="another folder"
        ) from error
    inputs = [path for path in (source.labels, source.root, *(s.mask for s in steps)) if path]
    for path in (path for step in steps for path in _paths(step, out)):
        if any(path.exists() and one.exists() and path.samefile(one) for one in inputs):
            raise OutputError(f"'{path}' is what is read.", remedy="another folder for --out")


def _paths(step: Step, out: Path) -> list[Path]:
    """The files of one step: its table, and its mask where it makes one."""
    table = out / f"{step.stem}.csv"
    return [table] if step.mask is not None else [table, out / (step.stem + MASK_ENDING)]


def _carry_out(
    step: Step, writer: TableWriter, out: Path, *, dry_run: bool, force: bool, output: Output
) -> dict[str, Any]:
    """Drop, write and tell.

    Files that are there stay if they are what would be written, so that a call that was stopped
    between two files can be repeated.
    """
    from catwise.data import save_mask

    full = writer.dataset.labels
    kept = step.kept(full)
    table, *masks = _paths(step, out)
    sha = None
    if not dry_run:
        writer.write(kept, table, replace=force)
        for path in masks:
            sha = save_mask(path, full, kept, protocol=step.protocol, overwrite=force)
    about = {
        "protocol": step.protocol,
        "table": str(table),
        "mask": str(masks[0] if masks else step.mask),
        "mask_sha256": sha or _sha_of(step),
        **_numbers(full, kept),
    }
    output.line(
        f"{table}: {about['n_kept']:,} of {about['n_full']:,} labels stay ({about['share']:.2%}), "
        f"{about['n_positive']:,} positive, {about['n_negative']:,} negative; "
        f"{about['n_categories_both']:,} of {full.n_categories:,} categories have both"
    )
    if about["mask_sha256"]:
        output.line(f"  mask: {about['mask']}")
        output.line(f"  SHA-256: {about['mask_sha256']}")
    return about


def _sha_of(step: Step) -> str | None:
    from catwise.data import read_mask

    return None if step.mask is None else read_mask(step.mask).sha256


def _numbers(full: PartialLabels, kept: PartialLabels) -> dict[str, Any]:
    before, after = full.counts(), kept.counts()
    n_full = int(before.known.sum() + before.uncertain.sum())
    n_kept = int(after.known.sum() + after.uncertain.sum())
    return {
        "n_full": n_full,
        "n_kept": n_kept,
        "share": n_kept / n_full if n_full else 0.0,
        "n_positive": int(after.positive.sum()),
        "n_negative": int(after.negative.sum()),
        "n_categories_both": int(((after.positive > 0) & (after.negative > 0)).sum()),
    }

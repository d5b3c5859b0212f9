"""Folders of runs: how `tune` and `select` end, and how `select` reads what `tune` left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from catwise.cli.console import Output
from catwise.cli.thumbnails import Images, thumbnails_of
from catwise.errors import HarmError

if TYPE_CHECKING:
    from catwise.heads import Head
    from catwise.metrics import HeadComparison
    from catwise.tuning import SelectResult, TuneResult
    from catwise.tuning.selecting import Run

RUN_HELP: Final = "Output directory."
PREVIOUS_FILE: Final = "previous.safetensors"
"""The head before an update, in the folder that is brought up to date."""
OVERWRITE_HELP: Final = "Replace an earlier run there."


def finish(
    command: str,
    result: TuneResult | SelectResult,
    out: Path,
    *,
    inputs: Mapping[str, Any],
    overwrite: bool,
    output: Output,
    images: Images | None = None,
    previous: Head | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the run and say what came of it; the report's path stands last."""
    from catwise.reporting import run_document, run_table, summary_lines, write_run

    pictures = thumbnails_of(getattr(result, "curves", None), images, output)
    how: dict[str, Any] = {"inputs": inputs, "thumbnails": pictures, "overwrite": overwrite}
    with output.progress() as progress:
        written = write_run(result, out, **how, previous=previous, progress=progress)
    document = run_document(result, inputs=inputs)
    output.table(run_table(document, limit=output.rows))
    for line in (*summary_lines(document), *_advice(document), *document["notes"]):
        output.line(line)
    output.line()
    output.line(f"head:   {written['head.safetensors']}")
    output.line(f"report: {written['report.html']}")
    files = {name: str(path) for name, path in written.items()}
    output.document(
        {"command": command, "out": str(out), "files": files, **document, **(more or {})}
    )


def refuse_harm(against: HeadComparison | None, previous: Path) -> None:
    """End with an exit code of its own where an update made the head worse."""
    if against is not None and against.verdict == "harmed":
        raise HarmError(
            "the new head is worse than the one before, on the same test images.",
            found=against.sentence(),
            remedy=f"the head before is '{previous}'; look at the labels that changed",
        )


def _advice(document: Mapping[str, Any]) -> list[str]:
    """What the memorisation gap suggests."""
    advice = (document.get("gap") or {}).get("advice") or []
    return [advice] if isinstance(advice, str) else [str(line) for line in advice]


def read_candidate(path: Path) -> Run:
    """Read a head, with the out-of-fold logits of its run where it has them."""
    from catwise.heads import read_head
    from catwise.tuning.account.results import FoldArtifacts
    from catwise.tuning.selecting import Run

    inside = path / "head.safetensors" if path.is_dir() else path
    folds = inside.with_name("folds.safetensors")
    if inside.name != "head.safetensors" or not inside.is_file():
        return Run(read_head(path), None)
    return Run(read_head(inside), FoldArtifacts.load(folds) if folds.is_file() else None)

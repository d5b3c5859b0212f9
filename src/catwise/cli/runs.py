"""How `tune` and `select` end: the folder is written, people are told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from catwise.cli.console import Output
    from catwise.tuning import SelectResult, TuneResult

__all__ = ["finish"]


def finish(
    command: str,
    result: TuneResult | SelectResult,
    out: Path,
    *,
    inputs: Mapping[str, Any],
    overwrite: bool,
    output: Output,
) -> None:
    """Write the run and say what came of it; the report's path stands last."""
    from catwise.reporting import run_document, run_table, summary_lines, write_run

    written = write_run(result, out, inputs=inputs, overwrite=overwrite)
    document = run_document(result, inputs=inputs)
    output.table(run_table(document, limit=output.rows))
    for line in (*summary_lines(document), *_advice(document), *document["notes"]):
        output.line(line)
    output.line()
    output.line(f"head:   {written['head.safetensors']}")
    output.line(f"report: {written['report.html']}")
    files = {name: str(path) for name, path in written.items()}
    output.document({"command": command, "out": str(out), "files": files, **document})


def _advice(document: Mapping[str, Any]) -> list[str]:
    """What the memorisation gap suggests."""
    advice = (document.get("gap") or {}).get("advice") or []
    return [advice] if isinstance(advice, str) else [str(line) for line in advice]

"""`catwise export`: a classifier as one ONNX graph, or as a program of torch.export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from catwise._options import group, option
from catwise.cli.building import make_command
from catwise.cli.console import Output
from catwise.cli.inputs import refuse_inputs
from catwise.cli.outputs import hold_output


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise export` is given."""

    classifier: Path = option(metavar="DIR", first=True, help="A classifier by `catwise package`.")
    model: str | None = option(
        None,
        metavar="python:MODULE:FUNCTION",
        help="The function that makes its model, where one does: it is not called unasked.",
    )
    onnx: Path | None = option(None, metavar="FILE", first=True, help="One ONNX graph.")
    torch_export: Path | None = option(
        None, metavar="FILE", first=True, help="A program of torch.export (.pt2)."
    )
    output: Output = group("Output")

    def __post_init__(self) -> None:
        if self.onnx is None and self.torch_export is None:
            raise click.UsageError("give --onnx FILE, --torch-export FILE, or both.")


@make_command("export", "Export a classifier to ONNX or torch.export.")
def command(given: Options) -> None:
    """Export a classifier: model, calibration and thresholds in one graph.

    Its input are preprocessed images (N, channels, height, width), or features (N, D) for a head
    alone; its outputs are logits, probabilities, decisions (1, 0, or -1 without a threshold), and,
    where there are conformal sets, sets (0 none, 1 negative, 2 positive, 3 both). What is written
    was run beside the classifier first.
    """
    output = given.output
    places = [path for path in (given.onnx, given.torch_export) if path is not None]
    for path in places:
        refuse_inputs(path, given.classifier)
        hold_output(path)
    from catwise.predicting import load_classifier

    classifier = load_classifier(given.classifier, model=given.model)
    if given.onnx is not None:
        classifier.export_onnx(given.onnx)
    if given.torch_export is not None:
        classifier.export_torch(given.torch_export)
    for path in places:
        output.line(str(path))
    output.document(
        {
            "command": "export",
            "classifier": str(given.classifier),
            "digest": classifier.digest,
            "onnx": None if given.onnx is None else str(given.onnx),
            "torch_export": None if given.torch_export is None else str(given.torch_export),
            "outputs": classifier.output_names,
        }
    )

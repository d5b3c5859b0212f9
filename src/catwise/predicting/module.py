"""A classifier as one torch module, and as a program of `torch.export`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from catwise._io import write_bytes
from catwise.decisions import DecisionModule
from catwise.errors import ConfigError, MismatchError, reason_of
from catwise.models.layers import call
from catwise.models.packages import FAILS
from catwise.predicting.probe import probe_images

if TYPE_CHECKING:
    from catwise.decisions import DecisionRules
    from catwise.predicting.classifier import Classifier

OUTPUTS: Final = ("logits", "probabilities", "decisions", "sets")
NEAR: Final = 1e-4
"""How far logits of what is exported may be off on made-up inputs, as a share of the largest.

Of photographs they are off by some 2e-6. An image that is black throughout leaves batch norms
nothing but rounding: there torch itself is off by 7e-6.
"""
_PROBES: Final = 4


def output_names(rules: DecisionRules) -> tuple[str, ...]:
    """What an exported file gives: sets too, where there are conformal ones."""
    return OUTPUTS if rules.cuts is not None else OUTPUTS[:3]


class LayerLogits(nn.Module):
    """A model's input → (N, C) float32 logits, as its classification layer gives them.

    Args:
        model: of torch.
        layer: the name of its classification layer.
        rows: of the layer, one for each category.
        flips: whether to take the mean over an image and its mirror image.
        argument: the keyword that takes the images; None: the first argument.
    """

    def __init__(
        self, model: nn.Module, layer: str, rows: list[int], *, flips: bool, argument: str | None
    ) -> None:
        super().__init__()
        self.model, self.layer, self.argument, self.flips = model, layer, argument, flips
        width = getattr(model.get_submodule(layer), "out_features", None)
        self.rows = None if width == len(rows) and rows == [*range(len(rows))] else rows

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits = self._once(images)
        return (logits + self._once(images.flip(-1))) / 2 if self.flips else logits

    def _once(self, images: Tensor) -> Tensor:
        seen: list[Tensor] = []
        layer = self.model.get_submodule(self.layer)
        handle = layer.register_forward_hook(lambda _, __, output: seen.append(output))
        try:
            call(self.model, images, self.argument)
        finally:
            handle.remove()
        given = seen[-1]
        rows = given.flatten(2).mean(2) if given.ndim == 4 else given.flatten(1)
        return (rows if self.rows is None else rows[:, self.rows]).float()


class ClassifierModule(nn.Module):
    """A model's input, or features → logits, probabilities, decisions, and sets if there are any.

    Args:
        scores: makes (N, C) float32 logits.
        decisions: what is made of them.
    """

    def __init__(self, scores: nn.Module, decisions: DecisionModule) -> None:
        super().__init__()
        self.scores, self.decisions = scores, decisions

    def forward(self, given: Tensor) -> tuple[Tensor, ...]:
        """(N, C) float32 logits, float32 probabilities, int8 decisions, and int8 sets if any."""
        found: tuple[Tensor, ...] = self.decisions(self.scores(given))
        return found

    @classmethod
    def of(cls, classifier: Classifier) -> ClassifierModule:
        """The module of a classifier, in evaluation mode.

        Raises:
            ConfigError: If its model is not one of torch.
        """
        made = cls(scores_of(classifier), classifier.rules.module())
        return made.eval().requires_grad_(requires_grad=False)


def scores_of(classifier: Classifier) -> nn.Module:
    """The module that makes a classifier's logits.

    Raises:
        ConfigError: If its model is not one of torch.
    """
    if classifier.manifest.model is None:
        head = classifier.head
        return head.replace(
            weight=head.weight.float(), bias=None if head.bias is None else head.bias.float()
        ).to_linear()
    model = classifier.model
    if model.module is None or model.name.startswith("onnx:"):
        raise ConfigError(
            f"{model.name} is not a model of torch.",
            remedy="export_onnx (--onnx) writes one ONNX graph of it",
        )
    return LayerLogits(
        model.module,
        model.layer,
        classifier.rows,
        flips=classifier.flips,
        argument=model.image_argument,
    ).eval()


def probe_inputs(classifier: Classifier) -> Tensor:
    """A few inputs to try what is exported with: an exporter follows one way through a model.

    Pictures, and images that are black, white, and noise.
    """
    if classifier.preprocessing is not None:
        images = probe_images(classifier.preprocessing)
        mean, std = (
            torch.tensor(part).view(-1, 1, 1)
            for part in (classifier.preprocessing.mean, classifier.preprocessing.std)
        )
        noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
        plain = torch.stack([torch.zeros(images.shape[1:]), torch.ones(images.shape[1:])])
        return torch.cat([images, images.flip(-1), (noise - mean) / std, (plain - mean) / std])
    shape = (_PROBES, classifier.head.n_features)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def wanted_of(classifier: Classifier, inputs: Tensor) -> tuple[Tensor, ...]:
    """What the classifier itself gives for the same pieces, in the order of `OUTPUTS`."""
    (logits,) = in_pieces(lambda some: [classifier.predict(some).logits.float()], inputs)
    made: tuple[Tensor, ...] = classifier.rules.module()(logits)
    return made


def in_pieces(run: Callable[[Tensor], list[Any]], inputs: Tensor) -> list[Tensor]:
    """What `run` gives for two inputs together and for the others one by one, joined."""
    pieces = [inputs[:2], *(inputs[at : at + 1] for at in range(2, len(inputs)))]
    made = [[torch.as_tensor(part) for part in run(some)] for some in pieces]
    return [torch.cat(parts) for parts in zip(*made, strict=True)]


def metadata_of(classifier: Classifier) -> dict[str, str]:
    """What an exported file says of itself, by catwise's names."""
    facts: dict[str, Any] = {
        "categories": list(classifier.categories),
        "classifier": classifier.digest,
        "population": classifier.population,
    }
    if classifier.preprocessing is not None:
        facts["preprocessing"] = classifier.preprocessing.to_dict()
    return {
        f"catwise.{name}": fact if isinstance(fact, str) else json.dumps(fact)
        for name, fact in facts.items()
    }


def export_program(classifier: Classifier, path: Path) -> None:
    """Write a program of `torch.export`, once it gives what the module gives."""
    module, inputs = classifier.module(), probe_inputs(classifier)
    try:
        with torch.no_grad():
            program = torch.export.export(
                module, (inputs[:2],), dynamic_shapes=({0: torch.export.Dim("n")},), strict=False
            )
            exported = program.module()
            found = in_pieces(lambda some: list(exported(some)), inputs)
    except (*FAILS, AssertionError) as error:
        raise cannot_export("torch.export", error) from error
    check_same(classifier.rules, wanted_of(classifier, inputs), found, what="the exported program")
    buffer = io.BytesIO()  # torch ends the process where a file cannot be written
    torch.export.save(program, buffer, extra_files=metadata_of(classifier))
    write_bytes(path, buffer.getvalue())


def cannot_export(what: str, error: BaseException) -> ConfigError:
    """The error for a model that an exporter cannot take."""
    cause = error.__cause__ if isinstance(error, MismatchError) and error.__cause__ else error
    return ConfigError(
        f"{what} cannot take the model.",
        found=reason_of(cause, named=True)[:240],
        remedy="take out of its forward what depends on the values or the number of images",
    )


def check_same(rules: DecisionRules, wanted: Any, found: Any, *, what: str) -> None:
    """Refuse outputs that differ: logits by more than rounding, decisions where that is no reason.

    Args:
        rules: that made the decisions.
        wanted: tensors in the order of `OUTPUTS`.
        found: the same of what was exported.
        what: that is.
    """
    (logits, _, decisions, *sets), (given, _, others, *other_sets) = wanted, found
    room = NEAR * float(logits.abs().max().clamp_min(1e-30))
    gap = float((logits - given).abs().max())
    near = (logits - torch.from_numpy(rules.float32_thresholds())).abs() <= room
    differ = int(((decisions != others) & ~near).sum())
    cuts = rules.float32_cuts()
    if cuts is not None:
        near = (logits[None] - torch.from_numpy(cuts)[:, None]).abs().amin(0) <= room
        differ += int(((sets[0] != other_sets[0]) & ~near).sum())
    if not gap <= room or differ:
        raise MismatchError(
            f"{what} does not give what the classifier gives.",
            found=f"logits that differ by {gap / room * NEAR:.2g} of the largest, and "
            f"{differ:,} other decisions or sets",
            expected=f"at most {NEAR:g}, and none",
            remedy="a model that takes another way depending on the values cannot be exported; "
            "report others, with the model",
        )

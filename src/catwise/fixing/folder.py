"""The folder that `fix` fills: which steps are finished in it, and with which inputs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from catwise._io import atomic_path, folder_names, make_folder, write_json
from catwise._json import TABLE, TEXT, Field, read_fields, read_file
from catwise._lock import exclusive, remove
from catwise.data.masks import labels_sha256
from catwise.errors import ConfigError, OutputError
from catwise.heads.provenance import side_file
from catwise.labels import PartialLabels
from catwise.models import Preprocessing

STATE: Final = "fix.json"
FEATURES: Final = "features"
RUN: Final = "run"
EVALUATION: Final = "evaluation.json"
REPORT: Final = "report.html"
CARD: Final = "MODEL_CARD.md"
README: Final = "README.md"
LEFT_OUT: Final = "left_out.csv"
PREVIOUS: Final = "previous.safetensors"
PREVIOUS_RUN: Final = "previous"
UNCHANGED: Final = "unchanged.json"
STEPS: Final = ("extract", "tune", "apply", "verify")
"""In order; each needs those before it."""

_OURS: Final = (
    *(STATE, FEATURES, RUN, EVALUATION, REPORT, CARD, LEFT_OUT, PREVIOUS, PREVIOUS_RUN, UNCHANGED),
)
_OF_THE_DATA: Final = ("images", "images that are not there")


def checkpoint_name(name: str) -> str:
    """What the new checkpoint is called: as the old one, unless a file of ours has that name."""
    taken = {*_OURS, *(f"{FEATURES}.{more}" for more in ("parts", "new", "new.parts"))}
    return f"model-{name}" if name in taken or name.startswith(".catwise-") else name


def has_readme(folder: Path) -> bool:
    """Whether a folder of a model has a README of its own, which stays what it is."""
    return any(path.name.lower() == README.lower() for path in folder.iterdir())


@dataclass
class State:
    """What `fix.json` says.

    Attributes:
        folder: the output folder.
        inputs: what the results depend on: names to short texts or digests.
        target: name of the new checkpoint.
        finished: the steps that are done, and what each noted.
        steps: what this call did: "ran" or "kept".
        stale: what `fix.json` said of a run that is replaced.
        overwrite: whether a run with other inputs may be replaced.
        update: whether a run with other images and labels may be brought up to date; its head stays
            as `previous.safetensors`.
    """

    folder: Path
    inputs: dict[str, str]
    target: str
    finished: dict[str, dict[str, Any]] = field(default_factory=dict)
    steps: dict[str, str] = field(default_factory=dict)
    stale: dict[str, Any] | None = None
    overwrite: bool = False
    update: bool = False

    @classmethod
    def read(
        cls,
        folder: Path,
        inputs: dict[str, str],
        target: str,
        *,
        overwrite: bool = False,
        update: bool = False,
    ) -> State:
        """Read what is there, and refuse what is not this run; nothing is written."""
        state = cls(folder, inputs, target, overwrite=overwrite, update=update)
        inside = folder_names(folder)
        kept = _read(folder / STATE)
        if kept is None:
            if inside:
                raise OutputError(
                    f"'{folder}' holds files of something else.",
                    found=", ".join(inside[:3]),
                    expected="an empty folder, a new one, or an unfinished run",
                    remedy="choose another folder",
                )
            return state
        changed = differences(kept["inputs"], inputs)
        if not changed:
            state.finished = kept["finished"]
        elif overwrite or (update and not differences(*map(_fixed, (kept["inputs"], inputs)))):
            state.stale = kept
        elif "tune" in kept["finished"]:  # features alone say themselves what they were made with
            raise OutputError(
                f"'{folder}' holds a run with other inputs.",
                found="; ".join(changed),
                expected="the inputs and options that the run was started with",
                remedy="choose another folder, or start over with --overwrite (overwrite=True)",
            )
        return state

    @contextlib.contextmanager
    def opened(self) -> Iterator[State]:
        """Make the folder, keep other processes out, and tidy up after a run that was killed."""
        make_folder(self.folder)
        with exclusive(self.folder, inside=True):
            now = State.read(
                self.folder,
                self.inputs,
                self.target,
                overwrite=self.overwrite,
                update=self.update,
            )
            self.finished, self.stale = now.finished, now.stale  # another may have ended meanwhile
            if self.stale is not None:
                self._write()  # first: nothing may count as finished once its files are gone
                old = str(self.stale.get("target", RUN))
                names = {*_OURS, Path(old).name, side_file(Path(old)).name}
                self._keep_run()
                kept = {PREVIOUS, PREVIOUS_RUN} if self.update else set()
                for name in names - {STATE, FEATURES} - kept:
                    remove(self.folder / name)
            self._write()
            yield self
            self._check_finished()

    def _keep_run(self) -> None:
        """Keep the run that is brought up to date, and its head, to compare the new one with."""
        run, before = self.folder / RUN, self.folder / PREVIOUS_RUN
        head = run / "head.safetensors"
        if self.update and head.is_file():
            with atomic_path(self.folder / PREVIOUS) as kept:
                shutil.copyfile(head, kept)
            if before.exists():
                remove(before)
            run.rename(before)

    def redo(self) -> None:
        """Images have changed under the same labels: what was made of their features goes."""
        self._keep_run()
        for step in STEPS[1:]:
            self.finished.pop(step, None)
        self._write()

    def _check_finished(self) -> None:
        """What earlier calls made must be there still; what this one wrote is checked elsewhere."""
        if lost := [step for step in self.finished if not self.has(step)]:
            raise OutputError(
                f"files in '{self.folder}' were removed while catwise ran.",
                found=f"what these steps made is gone: {', '.join(lost)}",
                remedy="the same command makes it again",
            )

    @property
    def facts(self) -> dict[str, Any]:
        """What finished steps noted."""
        return {key: value for facts in self.finished.values() for key, value in facts.items()}

    def has(self, step: str) -> bool:
        """Whether a step is finished and what it made is there."""
        run = ["head.safetensors", "config.json", "summary.json", "records.json"]
        if "test labels" in self.inputs:  # without it the headline would be another one
            run.append(EVALUATION)
        made = {
            "extract": [FEATURES],
            "tune": [f"{RUN}/{name}" for name in run],
            "apply": [self.target],
        }
        there = ((self.folder / name).exists() for name in made.get(step, []))
        return step in self.finished and all(there)

    def done(self, step: str) -> bool:
        """The same, and note it for this call; what depends on a step that must run is not done."""
        there = self.has(step)
        self.steps[step] = "kept" if there else "ran"
        if not there:
            for later in STEPS[STEPS.index(step) :]:
                self.finished.pop(later, None)
        return there

    def finish(self, step: str, facts: Mapping[str, Any] | None = None) -> None:
        """Note that a step is finished."""
        self.finished[step] = dict(facts or {})
        self._write()

    def _write(self) -> None:
        document = {"inputs": self.inputs, "target": self.target, "finished": self.finished}
        write_json(self.folder / STATE, document)


def _read(path: Path) -> dict[str, Any] | None:
    """The document, or None if there is none."""
    try:
        return read_fields(read_file(path), _DOCUMENT)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise OutputError(
            f"'{path}' is not what fix writes.", found=str(error), remedy="choose a new folder"
        ) from error


_TEXTS_BY_NAME: Final = Field(
    "a table of texts", lambda v: TABLE.test(v) and all(type(text) is str for text in v.values())
)
_TABLES_BY_NAME: Final = Field(
    "a table of tables", lambda v: TABLE.test(v) and all(map(TABLE.test, v.values()))
)
_DOCUMENT: Final = {
    "inputs": _TEXTS_BY_NAME,
    "target": replace(TEXT, required=False),
    "finished": _TABLES_BY_NAME,
}


class Fixed(NamedTuple):
    """What `fix` has finished in a folder, for what comes after it.

    Attributes:
        checkpoint: the new checkpoint.
        head: the file of its head.
        recipe: how its model is loaded, as `catwise.models.recipes.recipe_of` says it.
        preprocessing: how images become the model's input.
        flips: whether features are means over an image and its mirror image.
        weights: digest of the model that gave the features.
    """

    checkpoint: Path
    head: Path
    recipe: dict[str, Any]
    preprocessing: Preprocessing
    flips: bool
    weights: str


def read_fixed(folder: Path) -> Fixed:
    """What `fix` has finished in a folder.

    Raises:
        OutputError: If `fix.json` is not what fix writes.
        ConfigError: If there is no finished checkpoint, or an earlier version made it.
    """
    kept = _read(folder / STATE)
    wrong = f"'{folder}' holds no finished checkpoint of fix."
    if kept is None or "target" not in kept or not (folder / kept["target"]).exists():
        raise ConfigError(wrong, remedy="check the path, or let catwise fix end")
    try:
        model = read_fields(kept["finished"].get("apply", {}).get("model"), _MODEL, "its model")
        preprocessing = Preprocessing.from_dict(model["preprocessing"])
    except ValueError as error:
        raise ConfigError(
            f"'{folder}' does not say how its model is loaded.",
            found=str(error),
            remedy="an earlier catwise made it: name the model and the new checkpoint "
            "(--model, --checkpoint)",
        ) from error
    return Fixed(
        folder / kept["target"],
        folder / RUN / "head.safetensors",
        model["recipe"],
        preprocessing,
        model["flips"],
        model["weights"],
    )


_MODEL: Final = {
    "recipe": TABLE,
    "preprocessing": TABLE,
    "flips": Field("true or false", lambda value: type(value) is bool),
    "weights": TEXT,
}


def _fixed(inputs: Mapping[str, str]) -> dict[str, str]:
    """The inputs that an update cannot change: all but images and labels."""
    data = {name for name in inputs if name.endswith(" labels")} | {*_OF_THE_DATA}
    return {name: text for name, text in inputs.items() if name not in data}


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """A text for each input that is another one."""
    found = []
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if old is None or new is None:
            found.append(f"{key}: {'not there before' if old is None else 'not there now'}")
        elif old.startswith("sha256:"):
            found.append(f"{key}: other content")
        else:
            found.append(f"{key}: {old}, now {new}")
    return found


def labels_digest(labels: PartialLabels) -> str:
    """Of ids, groups, categories and codes."""
    digest = hashlib.sha256(labels_sha256(labels).encode())
    for names in (labels.categories, labels.ids, labels.groups):
        digest.update(json.dumps(None if names is None else list(map(str, names))).encode())
    return f"sha256:{digest.hexdigest()}"

"""The parts of `fix`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from catwise.data import read_table
from catwise.errors import ConfigError, IdError, MismatchError, OutputError
from catwise.fixing import FixConfig, account, find_images, fix, listed_images, prepare
from catwise.fixing.folder import State, checkpoint_name, labels_digest
from catwise.labels import PartialLabels
from catwise.models import LoadedModel, Preprocessing
from catwise.models.registry import load_model
from catwise.models.sources import FolderImages
from cli.fix_case import MODEL, NAMES, SPLITS, make_case, tiny_net

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.progress import Progress


def texts(*values: str) -> np.ndarray[Any, np.dtype[np.str_]]:
    return np.array(values, dtype=np.str_)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a/1.jpg", "a/2.png", "b/3.jpg", "4.JPG"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"")
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fixing")
    make_case(folder)
    return folder


def labels_of(folder: Path) -> dict[str, PartialLabels]:
    path = folder / "labels.csv"
    table = read_table(path, encoding="nan", id_column="image", split_column="split")
    return {name: table.split(name).labels for name in SPLITS}


def given(folder: Path) -> tuple[Any, ...]:
    return MODEL, folder / "images", labels_of(folder)


# ---------------------------------------------------------------------------------- images


def test_ids_are_paths_or_names_with_or_without_suffix(photos: Path) -> None:
    """Each form finds its file; the source keeps the order of the ids."""
    found = find_images(photos, texts("b/3.jpg", "2", "a/1", "4"))
    assert found.source.ids.tolist() == ["b/3.jpg", "2", "a/1", "4"]
    places = [found.source.locate(row)[0].relative_to(photos).as_posix() for row in range(4)]
    assert places == ["b/3.jpg", "a/2.png", "a/1.jpg", "4.JPG"]
    assert (found.missing, found.n_unlabelled) == ((), 0)


def test_an_id_that_fits_two_files(photos: Path) -> None:
    """It is refused with both."""
    (photos / "b/1.jpg").write_bytes(b"")
    with pytest.raises(IdError, match=r"(?s)1 ids fit several.*'1': 'a/1.jpg', 'b/1.jpg'"):
        find_images(photos, texts("1"))


def test_missing_images(photos: Path) -> None:
    """They are refused with the nearest name, or listed; where none is there, always refused."""
    with pytest.raises(IdError, match=r"(?s)1 of 2 labelled.*'a/7' \(did you mean 'a/"):
        find_images(photos, texts("2", "a/7"))
    found = find_images(photos, texts("2", "a/7"), skip_missing=True)
    assert (found.source.ids.tolist(), found.missing, found.n_unlabelled) == (["2"], ("a/7",), 3)
    with pytest.raises(IdError, match="1 of 1"):
        find_images(photos, texts("x"), skip_missing=True)


def test_listed_images(photos: Path) -> None:
    """A list of files is taken as it is; what is not there is refused or listed."""
    paths, ids = ["a/1.jpg", "gone.jpg"], ["x", "y"]
    assert listed_images(photos, paths[:1], ids[:1]).source.ids.tolist() == ["x"]
    with pytest.raises(IdError, match=r"(?s)1 of 2 .*gone.jpg"):
        listed_images(photos, paths, ids)
    found = listed_images(photos, paths, ids, skip_missing=True)
    assert (found.source.ids.tolist(), found.missing) == (["x"], ("y",))


# ---------------------------------------------------------------------------------- folder


@pytest.mark.parametrize("name", ["fix.json", "features", "features.parts", "run", "report.html"])
def test_checkpoint_never_takes_a_file_of_ours(name: str) -> None:
    """A folder of transformers may be called "run"; its copy is then called otherwise."""
    assert checkpoint_name(name) == f"model-{name}"
    assert checkpoint_name("net.pt") == "net.pt"


def test_a_target_outside_is_never_removed(tmp_path: Path) -> None:
    """What a fix.json of elsewhere names is looked for in the folder alone."""
    (tmp_path / "mine").write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    document = {"inputs": {"seed": "0"}, "target": "../mine", "finished": {}}
    (out / "fix.json").write_text(json.dumps(document))
    with State.read(out, {"seed": "1"}, "net.pt", overwrite=True).opened():
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_differences_are_told(tmp_path: Path) -> None:
    """Short values by both, digests as other content, new and absent ones by name."""
    before = {"seed": "0", "labels": "sha256:a", "old": "x"}
    with State.read(tmp_path / "out", before, "net.pt").opened() as state:
        (tmp_path / "out" / "features").mkdir()
        state.finish("extract", {"fact": 1})
    assert State.read(tmp_path / "out", before, "net.pt").facts == {"fact": 1}
    now = {"seed": "1", "labels": "sha256:b", "new": "y"}
    assert State.read(tmp_path / "out", now, "net.pt").finished == {}  # nothing tuned is lost
    with State.read(tmp_path / "out", before, "net.pt").opened() as state:
        (tmp_path / "out" / "run").mkdir()
        for name in ("head.safetensors", "config.json", "summary.json", "records.json"):
            (tmp_path / "out" / "run" / name).touch()
        state.finish("tune")
    with pytest.raises(OutputError) as caught:
        State.read(tmp_path / "out", now, "net.pt")
    assert caught.value.found == (
        "seed: 0, now 1; labels: other content; old: not there now; new: not there before"
    )


def test_steps_whose_files_vanish_are_an_error(tmp_path: Path) -> None:
    """Also of an earlier call, while this one runs."""
    out = tmp_path / "out"
    with State.read(out, {}, "net.pt").opened() as state:
        (out / "features").mkdir()
        state.finish("extract")

    def work() -> None:
        with State.read(out, {}, "net.pt").opened():
            (out / "features").rmdir()

    with pytest.raises(OutputError, match="removed while catwise ran"):
        work()


def test_the_first_file_of_a_killed_run_is_no_obstacle(tmp_path: Path) -> None:
    """Half of fix.json, or of its lock, is nobody's file."""
    out = tmp_path / "out"
    out.mkdir()
    (out / ".catwise-lock").touch()
    (out / ".catwise-0123456789abcdef.json").touch()
    with State.read(out, {}, "net.pt").opened():
        pass
    assert [path.name for path in out.iterdir()] == ["fix.json"]


def test_digest_of_labels_sees_all() -> None:
    """Ids, groups, names and codes count; how they are stored does not."""
    labels = PartialLabels([[1, 0], [-1, 1]], ids=["a", "b"], groups=["p", "q"])
    others = [
        PartialLabels([[1, 0], [-1, 0]], ids=["a", "b"], groups=["p", "q"]),
        PartialLabels([[1, 0], [-1, 1]], ids=["a", "c"], groups=["p", "q"]),
        PartialLabels([[1, 0], [-1, 1]], ids=["a", "b"], groups=["p", "p"]),
        PartialLabels([[1, 0], [-1, 1]], ids=["a", "b"], groups=["p", "q"], categories=["x", "y"]),
    ]
    digests = {labels_digest(one) for one in [labels, *others]}
    assert len(digests) == 5
    assert labels_digest(labels.with_storage("columns")) == labels_digest(labels)


# ---------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "options",
    [{"undecodable": "ask"}, {"missing": "ask"}, {"batch_rows": 0}, {"workers": -1}, {"seed": -1}],
)
def test_options_are_checked_when_made(options: dict[str, Any]) -> None:
    """A wrong option never reaches the work."""
    with pytest.raises(ConfigError, match=r"out of range|cannot be"):
        FixConfig(**options)


def test_labels_are_checked_first(case: Path, tmp_path: Path) -> None:
    """Unknown splits, no training labels, and labels without ids are refused."""
    model, images, labels = given(case)
    options = {"checkpoint": case / "net.safetensors"}
    train = labels["train"]
    nameless = PartialLabels(train.codes, categories=train.categories)
    for wrong, told in (
        ({"train": train, "dev": train}, "no split 'dev'"),
        ({"test": labels["test"]}, "training labels are needed"),
        ({"train": nameless}, "have no ids"),
    ):
        with pytest.raises(ConfigError, match=told):
            prepare(model, images, wrong, tmp_path / "out", **options)
    with pytest.raises(IdError, match="ids are in the train and the test labels"):
        prepare(model, images, {"train": train, "test": train}, tmp_path / "out", **options)


def test_model_must_be_loadable_again(case: Path, tmp_path: Path) -> None:
    """Else what is written could not be verified: that is said before any work."""
    _, images, labels = given(case)
    with pytest.raises(ConfigError, match="cannot be loaded again"):
        prepare(tiny_net(case / "net.safetensors"), images, labels, tmp_path / "out")


def test_an_input_that_nobody_named(case: Path, tmp_path: Path) -> None:
    """Where the preprocessing is a default, a note says so; where it was given, none does."""
    model, images, labels = given(case)
    options: dict[str, Any] = {"checkpoint": case / "net.safetensors"}
    assumed = Preprocessing(size=(8, 8), source="timm pretrained_cfg (untrained)")
    notes = [
        prepare(model, images, labels, tmp_path / "out", **options, preprocessing=take).notes
        for take in (assumed, Preprocessing(size=(8, 8)))
    ]
    assert ["does not say what input" in " ".join(one) for one in notes] == [True, False]


def test_what_changes_no_result_may_change(case: Path, tmp_path: Path) -> None:
    """A run goes on with other workers, or with the default device by its name."""
    model, images, labels = given(case)
    states = [
        prepare(
            model, images, labels, tmp_path, checkpoint=case / "net.safetensors", config=config
        ).state.inputs
        for config in (FixConfig(), FixConfig(workers=2, device="cpu"), FixConfig(flips=True))
    ]
    assert states[0] == states[1] != states[2]


# ---------------------------------------------------------------------------------- the whole


def test_from_python(case: Path, tmp_path: Path) -> None:
    """A loaded model, a source of images and labels give the whole result; progress tells."""
    model, images, labels = given(case)
    loaded = load_model(model, checkpoint=case / "net.safetensors")
    every = np.concatenate([part.ids for part in labels.values()])
    source = FolderImages(images, [f"{name}.png" for name in every], every)
    seen: list[Progress] = []
    result = fix(loaded, source, labels, tmp_path / "out", progress=seen.append)
    assert isinstance(loaded, LoadedModel)
    assert result.evaluation is not None
    assert result.evaluation["means"]["average_precision"]["difference"] > 0.05
    assert result.checkpoint.is_file()
    assert set(result.steps.values()) == {"ran"}
    stages = list(dict.fromkeys(one.stage for one in seen))
    assert stages[:3] == ["fix", "extract", "read"]
    assert [one.message for one in seen if one.stage == "fix"] == [
        "images through the model",
        "tuning the head and scoring both on the test images",
        "writing the checkpoint",
        "running the new checkpoint",
        "done",
    ]
    assert any("images/s" in one.message and "left" in one.message for one in seen)
    assert loaded.head is not None
    assert loaded.head.categories == ("0", "1", "2", "3")


def test_a_checkpoint_that_does_not_hold(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an error, now and on the next call, and the file is not left behind."""
    model, images, labels = given(case)

    def other(model: LoadedModel, path: Path, **_: object) -> LoadedModel:
        again = load_model(MODEL, checkpoint=path)
        again.module.body[1].bias.data += 1  # type: ignore[union-attr, index]
        return again

    monkeypatch.setattr("catwise.models.verify.reload_model", other)
    for _ in range(2):
        with pytest.raises(MismatchError, match=r"features of .* are not those of the original"):
            fix(model, images, labels, tmp_path / "out", checkpoint=case / "net.safetensors")
        assert not (tmp_path / "out/net.safetensors").exists()


def test_lines_where_nothing_could_be_scored() -> None:
    """Words stand where there are no numbers."""
    run = {
        "summary": {"metric": "auroc", "before": None},
        "records": [{"status": "skipped", "category": name} for name in NAMES],
    }
    headline = "Validation only: on validation, which chose, no category could be scored."
    assert account.result_lines(run) == [
        f"{headline} Test rows, which choose nothing, would judge.",
        "Rows of the head: 0 replaced, 0 kept, 4 skipped.",
        "No row was replaced, so the new checkpoint is a copy of the old one.",
    ]

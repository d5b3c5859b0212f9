"""`catwise extract` as users call it: folders, tables, shards, errors, kills, torchrun."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from catwise.cli import main
from catwise.errors import ConfigError, FeatureError, IdError, LabelError, OutputError
from catwise.features import FeatureStore, open_store
from catwise.models.images import read_image
from catwise.models.pixels import preprocess
from cli.tiny import MODEL, load, make_images

TESTS = Path(__file__).parents[1]


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ten images in the folder `images`, and that folder's parent as the place to work in."""
    monkeypatch.chdir(tmp_path)
    return make_images(tmp_path / "images")


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["extract", *MODEL, "--images", "images", *arguments])
    assert result.exit_code == code, result.output
    return result


def expected(paths: list[str]) -> np.ndarray:
    """Features by hand."""
    loaded = load()
    assert loaded.module is not None
    rows = [preprocess(read_image(path), loaded.preprocessing) for path in paths]
    with torch.no_grad():
        return loaded.module.eval()[:-1](torch.stack(rows)).half().numpy()


def check(store: FeatureStore, paths: list[str], ids: list[str]) -> None:
    assert store.ids is not None
    assert store.ids.tolist() == ids
    wanted = expected(paths).astype(np.float32)
    np.testing.assert_allclose(store.block(0, len(ids)), wanted, rtol=1e-3, atol=1e-5)


def there(folder: str = ".") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_folder(names: list[str]) -> None:
    """Every image under the folder becomes a row; its path is its id."""
    result = run("--out", "store")
    check(open_store("store", verify=True), [f"images/{name}" for name in names], names)
    assert "python:cli.tiny:load: classification layer 6" in result.output
    assert "10 rows of 8 features; images skipped: 0\nstore\n" in result.output
    assert there() == ["images", "store"]


def test_json(names: list[str]) -> None:
    """One document, and nothing else on stdout."""
    told = json.loads(run("--out", "store", "--json").stdout)
    assert told["preprocessing"]["size"] == [16, 16]
    del told["preprocessing"]
    assert told == {
        "command": "extract", "layer": "6", "images": 10, "out": "store",
        "rows": 10, "features": 8, "skipped": [],
    }  # fmt: skip


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_folder_and_a_table(names: list[str], suffix: str) -> None:
    """The table says which images, in which order, and what their ids are."""
    chosen = [names[7], names[0], names[3]]
    rows = [{"file": name, "key": f"id {at}"} for at, name in enumerate(chosen)]
    table = Path("table" + suffix)
    if suffix == ".csv":
        lines = [f"{row['key']},{row['file']}\n" for row in rows]
        table.write_text("key,file\n" + "".join(lines), encoding="utf-8")
    else:
        table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    paths = [f"images/{name}" for name in chosen]
    options = ["--table", str(table), "--path-column", "file"]
    run(*options, "--id-column", "key", "--out", "store")
    check(open_store("store"), paths, ["id 0", "id 1", "id 2"])
    run(*options, "--out", "paths")
    check(open_store("paths"), paths, chosen)


def test_tar_shards(names: list[str]) -> None:
    """A folder of shards is read in place; names with ../ write nothing anywhere."""
    Path("shards").mkdir()
    evil = "../../../escaped/0.png"
    for number, part in enumerate((names[:6], names[6:])):
        with tarfile.open(f"shards/{number}.tar", "w") as archive:
            for name in part:
                archive.add(f"images/{name}", arcname=evil if name == names[0] else name)
    before = sorted(str(path) for path in Path().rglob("*"))
    run("--images", "shards", "--out", "store")
    ids = ["../../../escaped/0", *(name.removesuffix(".png") for name in names[1:])]
    check(open_store("store"), [f"images/{name}" for name in names], ids)
    after = sorted(str(path) for path in Path().rglob("*") if path.parts[0] != "store")
    assert after == before
    assert not Path("../../../escaped").exists()


def test_shards_and_what_else(names: list[str]) -> None:
    """Beside shards, loose images or a table leave open what is meant; packed shards are named."""
    with tarfile.open("images/0.tar", "w") as archive:
        archive.add(f"images/{names[0]}", arcname="x.png")
    result = run("--out", "store", code=ConfigError.exit_code)
    assert "1 shards, and image files" in result.output
    Path("t.csv").write_text("path\nx.png\n", encoding="utf-8")
    line = ["--images", "images/0.tar", "--out", "store"]
    assert "a table" in run(*line, "--table", "t.csv", code=ConfigError.exit_code).output
    Path("images/0.tar.gz").write_bytes(gzip.compress(Path("images/0.tar").read_bytes()))
    line[1] = "images/0.tar.gz"
    assert "unpack it to a plain .tar" in run(*line, code=FeatureError.exit_code).output


def test_dry_run(names: list[str]) -> None:
    """A few images go through the model; nothing is written."""
    result = run("--out", "store", "--dry-run")
    assert "dry run: 10 images, 8 features; nothing was written" in result.output
    told = json.loads(run("--out", "store", "--dry-run", "--json").stdout)
    assert (told["dry_run"], told["features"], told["images"]) == (True, 8, 10)
    assert there() == ["images"]


def test_undecodable_images(names: list[str]) -> None:
    """They are refused by name, or left out, counted and listed."""
    Path("images", names[4]).write_bytes(b"no image")
    result = run("--out", "store", code=FeatureError.exit_code)
    assert names[4] in result.output
    assert "not an image of a known format" in result.output
    assert not Path("store").exists()
    assert "--undecodable skip" in result.output
    result = run("--out", "store", "--undecodable", "skip")
    assert f"9 rows of 8 features; images skipped: 1\n  {names[4]}\n" in result.output
    kept = [name for name in names if name != names[4]]
    store = open_store("store")
    assert store.ids is not None
    assert store.ids.tolist() == kept
    assert store.origin["extract"]["skipped"] == [names[4]]


def test_a_repaired_image_costs_no_work(names: list[str]) -> None:
    """After the refusal the image is repaired, and the same command goes on."""
    path = Path("images", names[4])
    sound = path.read_bytes()
    path.write_bytes(b"no image")
    run("--out", "store", code=FeatureError.exit_code)
    path.write_bytes(sound)
    run("--out", "store")
    check(open_store("store"), [f"images/{name}" for name in names], names)


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--images", "nowhere"], ConfigError.exit_code, "no images in 'nowhere'"),
        (["--id-column", "key"], 2, "--id-column belongs to --table"),
        (["--table", "t.csv"], LabelError.exit_code, "no column 'path'"),
        (["--table", "t.csv", "--path-column", "twice"], IdError.exit_code, "more than once"),
        (["--out", "s3x://a/b"], ConfigError.exit_code, "s3x"),
        (["--out", "memory://a/b"], ConfigError.exit_code, "unfinished work needs one"),
        (["--out", "images"], OutputError.exit_code, "images' exists"),
        (["--out", "store", "--parts", "x"], ConfigError.exit_code, "at an URL"),
        (["--device", "cuda:9"], ConfigError.exit_code, "cuda:9"),
        (["--input-size", "12"], 2, "HEIGHTxWIDTH"),
    ],
)
def test_what_is_not_possible(names: list[str], options: list[str], code: int, reason: str) -> None:
    """Each has its own message and exit code, before any work; nothing is left."""
    Path("t.csv").write_text(f"twice,key\n{names[0]},a\n{names[0]},b\n", encoding="utf-8")
    result = run("--out", "store", *options, code=code)
    assert reason in " ".join(result.output.split())
    assert there() == ["images", "t.csv"]


def test_other_images_are_told_apart(names: list[str]) -> None:
    """Another folder with images of the same names is not what the store holds."""
    run("--out", "store")
    make_images(Path("other"))
    before = files(Path("store"))
    result = run("--images", "other", "--out", "store", code=OutputError.exit_code)
    assert "images:" in result.output
    assert files(Path("store")) == before


def test_again(names: list[str]) -> None:
    """The same call leaves a finished store; images that changed in place are read on request."""
    run("--out", "store")
    before = files(Path("store"))
    Path("images", names[0]).write_bytes(Path("images", names[1]).read_bytes())
    run("--out", "store")
    assert files(Path("store")) == before
    assert "exists" in run("--out", "store", "--no-resume", code=OutputError.exit_code).output
    run("--out", "store", "--no-resume", "--overwrite")
    check(open_store("store"), [f"images/{name}" for name in names], names)


def test_an_url(names: list[str]) -> None:
    """The store is written at an URL; unfinished work is in a folder, which is removed."""
    fsspec = pytest.importorskip("fsspec")
    Path("scratch").mkdir()
    Path("scratch", "mine.txt").write_text("mine", encoding="utf-8")
    options = ["--out", "memory://cli/features", "--parts", "scratch"]
    Path("images", names[4]).rename("away")
    Path("images", names[4]).write_bytes(b"")
    run(*options, code=FeatureError.exit_code)
    assert len(there("scratch")) == 2
    Path("away").rename(Path("images", names[4]))
    run(*options)
    check(open_store("memory://cli/features"), [f"images/{name}" for name in names], names)
    assert there("scratch") == ["mine.txt"]
    run(*options)
    result = run(*options, "--flips", code=OutputError.exit_code)
    assert "flips: false, now true" in result.output
    fsspec.filesystem("memory").store.clear()


def test_numbers_that_are_stored(names: list[str]) -> None:
    """Flips, dtype and batch size reach the extraction."""
    run("--out", "store", "--dtype", "float32", "--flips", "--batch-size", "3", "--workers", "1")
    store = open_store("store")
    items: dict[str, Any] = store.origin["extract"]["items"]
    assert store.dtype == "float32"
    assert (items["flips"], items["batch_rows"]) == (True, 3)


# Processes of their own


def command(out: str) -> list[str]:
    return ["-m", "catwise", "extract", *MODEL, "--images", "images", "--batch-size", "2",
            "--out", out, "--quiet"]  # fmt: skip


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def test_torchrun(names: list[str]) -> None:
    """Two processes of torchrun make the store that one makes, byte for byte."""
    one = [sys.executable, *command("one")]
    two = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *command("two")]
    for line in (one, two):
        done = subprocess.run(
            line, capture_output=True, text=True, env=environment(), timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
    assert files(Path("one")) == files(Path("two"))


def test_killed(names: list[str]) -> None:
    """Killed three times at random moments, the command ends with an uninterrupted run's bytes."""
    run("--batch-size", "2", "--out", "whole")
    draw = random.Random(0)
    line = [sys.executable, *command("store")]
    for _ in range(3):
        process = subprocess.Popen(line, env=environment())
        time.sleep(draw.uniform(0.5, 4))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(line, env=environment(), check=True, timeout=300)
    assert files(Path("store")) == files(Path("whole"))
    assert there() == ["images", "store", "whole"]


def test_precision(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`--precision fast` says where it gives nothing; elsewhere the store says how it was made."""
    monkeypatch.setattr("catwise.models.ways._half_flags", lambda: ())
    output = run("--out", "exact", "--precision", "fast").output
    assert "does not compute in bfloat16" in output
    assert open_store("exact").origin["extract"]["items"]["precision"] == "exact"
    monkeypatch.setattr("catwise.models.ways._half_flags", lambda: ("amx_bf16",))
    assert "computed in bfloat16: up to" in run("--out", "fast", "--precision", "fast").output
    assert open_store("fast").origin["extract"]["items"]["computed in"] == "bfloat16"
    again = run("--out", "fast", code=OutputError.exit_code).output
    assert "precision" in again
    assert "compiling" in run("--out", "none", "--compile", "--dry-run").output


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("options", "value"),
    [
        ([], lambda rgb: (rgb - 0.5) / 0.5),
        (["--channels", "bgr"], lambda rgb: (rgb[::-1] - 0.5) / 0.5),
        (["--range", "0,255"], lambda rgb: 255 * rgb),
        (["--range=-1,1"], lambda rgb: 2 * rgb - 1),
        (["--range", "0,255", "--channels", "bgr", "--mean", "104,117,124", "--std", "1,2,4"],
         lambda rgb: (255 * rgb[::-1] - [104, 117, 124]) / [1, 2, 4]),
        (["--model-arg", "channels=1", "--channels", "grey", "--range", "0,255"],
         lambda rgb: 255 * rgb @ [[0.299], [0.587], [0.114]]),
    ],
)  # fmt: skip
def test_channels_and_values(options: list[str], value: Any) -> None:
    """A model gets its channels in its order and its values in its range."""
    colours = np.array([[200, 100, 40], [16, 32, 255]], dtype=np.uint8)
    Path("flat").mkdir()
    for at, colour in enumerate(colours):
        Image.fromarray(np.full((16, 16, 3), colour)).save(f"flat/{at}.png")
    line = ["--model", "python:cli.tiny:load_pixels", "--images", "flat", "--dtype", "float32"]
    run(*line, *options, "--out", "store")
    found = open_store("store").block(0, 2)
    for row, colour in zip(found, colours, strict=True):
        wide = 255 if "0,255" in options else 1
        np.testing.assert_allclose(row, value(colour / 255), atol=wide * 3e-3)


@pytest.mark.usefixtures("names")
def test_what_white_is() -> None:
    """Numbers that state no range are refused by an option that works; stores remember it."""
    Path("deep").mkdir()
    Image.fromarray(np.full((16, 16), 1024, dtype=np.int32)).save("deep/0.tiff")
    line = ["--model", "python:cli.tiny:load_pixels", "--images", "deep", "--dtype", "float32"]
    refused = run(*line, "--out", "store", code=FeatureError.exit_code).output
    assert "--white 4095" in refused
    told = run(*line, "--white", "4096", "--out", "store").output
    assert "white is 4096" in told
    np.testing.assert_allclose(open_store("store").block(0, 1), -0.5, atol=1e-6)
    other = run(*line, "--white", "2048", "--out", "store", code=OutputError.exit_code).output
    assert "white" in other


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--range", "255"], "LOW,HIGH"),
        (["--range", "1,0"], "LOW,HIGH"),
        (["--white", "0"], "--white"),
        (["--channels", "cmyk"], "--channels"),
    ],
)
def test_no_channels_or_values(options: list[str], text: str) -> None:
    """Each is refused by its name."""
    line = ["--model", "python:cli.tiny:load_pixels", "--images", ".", *options]
    assert text in run(*line, "--out", "store", code=2).output

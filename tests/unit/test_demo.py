"""The demonstration: its scenes, its network, its numbers and its files, at a small size."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from catwise.data import read_label_table
from catwise.demo import METHODS, DemoConfig, DemoResult, run_demo
from catwise.demo.model import SceneNet, extract_features, fit_ceiling, train_network
from catwise.demo.scenes import CATEGORIES, make_scenes, read_digits, split_digits
from catwise.errors import ConfigError, OutputError
from catwise.features import read_features
from catwise.heads import load_head, read_head
from catwise.metrics import evaluate
from catwise.testing import assert_same_head

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.progress import Progress

SMALL = DemoConfig(n_train=800, n_valid=200, n_test=300, keep=0.6, epochs=5, width=8, noise=0.05)
TINY = {"n_scenes": 40, "seed": 1}


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    return read_digits()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, list[Progress]]:
    told: list[Progress] = []
    out = tmp_path_factory.mktemp("demo") / "deep" / "out"
    return run_demo(out, seed=201, progress=told.append, config=SMALL), told


def test_digits_are_split_apart(digits: tuple[np.ndarray, np.ndarray]) -> None:
    """Every digit is in one part only, every kind in each part."""
    _, kinds = digits
    parts = split_digits(kinds, (0.5, 0.2, 0.3), seed=0)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(kinds)))
    assert all(set(kinds[part]) == set(range(10)) for part in parts)


def test_impossible_shares_are_refused() -> None:
    """Shares that do not sum to 1 make no split."""
    with pytest.raises(ConfigError, match="split"):
        split_digits(np.zeros(3, dtype=np.int64), (0.5, 0.6), seed=0)


def test_scenes_hold_allowed_digits_only(digits: tuple[np.ndarray, np.ndarray]) -> None:
    """No digit of another part gets into a scene, and each scene holds as many as asked for."""
    images, kinds = digits
    allowed = split_digits(kinds, (0.5, 0.5), seed=0)[0]
    scenes = make_scenes(images, kinds, allowed=allowed, n_digits=(2, 4), **TINY)
    used = scenes.digits[scenes.digits >= 0]
    assert set(used) <= set(allowed)
    counts = (scenes.digits >= 0).sum(1)
    assert counts.min() >= 2
    assert counts.max() <= 4


def test_labels_say_what_is_in_the_scene(digits: tuple[np.ndarray, np.ndarray]) -> None:
    """A category is present where one of the scene's cells holds such a digit."""
    images, kinds = digits
    scenes = make_scenes(images, kinds, allowed=np.arange(len(kinds)), **TINY)
    for cells, present in zip(scenes.digits, scenes.present, strict=True):
        assert set(np.flatnonzero(present)) == set(kinds[cells[cells >= 0]])


def test_digits_are_pasted_whole(digits: tuple[np.ndarray, np.ndarray]) -> None:
    """Without noise, a cell's brightness is its digit's, times a contrast of at most 1."""
    images, kinds = digits
    scenes = make_scenes(images, kinds, allowed=np.arange(len(kinds)), noise=0.0, **TINY)
    assert scenes.images.shape == (40, 27, 27)
    assert scenes.images.min() == 0.0
    for image, cells in zip(scenes.images, scenes.digits, strict=True):
        for cell, digit in enumerate(cells):
            top, left = cell // 3 * 9, cell % 3 * 9
            total = image[top : top + 9, left : left + 9].sum()
            whole = images[digit].sum() if digit >= 0 else 0.0
            assert 0.35 * whole - 1e-3 <= total <= whole + 1e-3


def test_training_leaves_the_global_random_state(digits: tuple[np.ndarray, np.ndarray]) -> None:
    """Networks depend on the seed alone and disturb nobody's random numbers."""
    images, kinds = digits
    scenes = make_scenes(images, kinds, allowed=np.arange(len(kinds)), **TINY)
    target = scenes.present.astype(np.float32)
    before = torch.get_rng_state()
    one, two, other = (
        train_network(scenes.images, target, np.ones_like(target), width=2, epochs=1, seed=seed)
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.head.weight, two.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_features_feed_the_head() -> None:
    """Extracted features times the head are the network's logits."""
    network = SceneNet(10, width=2).eval()
    images = np.random.default_rng(0).random((5, 27, 27), dtype=np.float32)
    features = torch.from_numpy(extract_features(network, images, batch=2))
    with torch.no_grad():
        expected = network(torch.from_numpy(images))
        torch.testing.assert_close(network.head(features), expected)


def test_the_ceiling_learns_all_labels() -> None:
    """It finds what the labels say, and a strong pull leaves the head as it was."""
    generator = np.random.default_rng(0)
    z = generator.standard_normal((200, 4)).astype(np.float32)
    present = (z[:, :2] > 0).astype(np.int8)
    before = torch.zeros(2, 4), torch.zeros(2)
    weight, _ = fit_ceiling(*before, z, present)
    assert weight.abs().argmax(1).tolist() == [0, 1]
    assert float(fit_ceiling(*before, z, present, penalty=1e4)[0].abs().max()) < 1e-3


@pytest.mark.parametrize("changes", [{"n_train": 0}, {"keep": 1.2}, {"epochs": -1}])
def test_impossible_sizes_are_refused(changes: dict[str, float]) -> None:
    """The option that is out of range is named."""
    with pytest.raises(ConfigError, match=next(iter(changes))):
        DemoConfig(**changes)


def test_table_has_every_method(demo: tuple[DemoResult, list[Progress]]) -> None:
    """Four rows over all categories; gains are against the head before tuning."""
    table = demo[0].table
    assert [row["method"] for row in table] == list(METHODS)
    before = table[0]["score"]
    for row in table:
        assert row["n_categories"] == len(CATEGORIES)
        if row["method"] != "before":
            assert row["gain"] == pytest.approx(row["score"] - before)
            assert row["gain_low"] < row["gain"] < row["gain_high"]


def test_there_is_something_to_gain(demo: tuple[DemoResult, list[Progress]]) -> None:
    """The network is better than chance and the ceiling is above it."""
    scores = {row["method"]: row["score"] for row in demo[0].table}
    assert 0.3 < scores["before"] < scores["ceiling"] < 1.0


def test_numbers_are_those_of_the_files(demo: tuple[DemoResult, list[Progress]]) -> None:
    """The patched checkpoint on the stored features gives the table's score, image by image."""
    result = demo[0]
    head = read_head(result.files["tuned_checkpoint"], categories=CATEGORIES)
    assert_same_head(head, result.result.head)
    features = read_features(result.files["features"])
    table = read_label_table(
        result.files["labels"],
        encoding="nan",
        id_column="id",
        split_column="split",
        split="test",
    )
    score = evaluate(head, (features, table), metrics="average_precision")
    scores = {row["method"]: row["score"] for row in result.table}
    assert score.means["average_precision"]["macro"] == pytest.approx(scores["default"])


def test_no_test_scene_fitted_or_selected(demo: tuple[DemoResult, list[Progress]]) -> None:
    """Neither tuned head remembers a test scene; evaluate would warn, and warnings are errors."""
    result = demo[0]
    features = read_features(result.files["features"])
    from catwise.features import row_digests

    digests = row_digests(features, ids=features.ids)
    test = np.char.startswith(features.ids, "test-")
    for tuned in (result.result, result.paper):
        assert tuned.head.fitted_on is not None
        assert np.isin(digests[~test], tuned.head.fitted_on).any()
        assert not np.isin(digests[test], tuned.head.fitted_on).any()


def test_only_the_head_is_patched(demo: tuple[DemoResult, list[Progress]]) -> None:
    """The original checkpoint keeps its head; the patched one differs in the head's bytes only."""
    files, result = demo[0].files, demo[0].result
    old, new = (
        torch.load(files[name], weights_only=True) for name in ("checkpoint", "tuned_checkpoint")
    )
    assert list(old) == list(new)
    changed = [key for key in old if not torch.equal(old[key], new[key])]
    assert set(changed) == {"head.weight", "head.bias"}
    assert_same_head(read_head(files["checkpoint"], categories=CATEGORIES), result.base)
    network = SceneNet(len(CATEGORIES), width=SMALL.width)
    network.load_state_dict(new)


def test_validation_labels_are_complete_and_training_labels_dropped(
    demo: tuple[DemoResult, list[Progress]],
) -> None:
    """The label table is what the facts say."""
    result = demo[0]
    with result.files["labels"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == SMALL.n_train + SMALL.n_valid + SMALL.n_test
    known = {"train": 0, "valid": 0, "test": 0}
    for row in rows:
        known[row["split"]] += sum(row[name] != "" for name in CATEGORIES)
    assert known["train"] == result.facts["known_train_labels"]
    assert known["train"] / (SMALL.n_train * 10) == pytest.approx(SMALL.keep, abs=0.03)
    assert known["valid"] == SMALL.n_valid * 10


def test_files_are_where_they_are_said_to_be(demo: tuple[DemoResult, list[Progress]]) -> None:
    """Every path exists; the document is JSON and holds the table; the report names no place."""
    result = demo[0]
    assert all(path.exists() for path in result.files.values())
    document = json.loads(result.files["table"].read_text())
    assert document["table"] == result.table
    json.dumps(result.to_dict(), allow_nan=False)
    assert result.report.name == "report.html"
    assert ".catwise-" not in result.report.read_text()
    assert_same_head(load_head(result.files["run"] / "head.safetensors"), result.result.head)


def test_the_report_is_about_the_test_scenes(demo: tuple[DemoResult, list[Progress]]) -> None:
    """Its headline is their verdict, and it holds the table of all heads."""
    result = demo[0]
    page = result.report.read_text()
    assert result.result.test is not None
    sentence = result.result.test.sentence()
    assert f"on {SMALL.n_test} test rows" in sentence
    assert f'<p class="verdict">{sentence}</p>' in page
    for row in result.table:
        cell = f'<td class="number" data-label="score">{row["score"]:.4f}'
        assert f'<th scope="row">{row["name"]}</th>\n{cell}' in page
    evaluation = json.loads((result.files["run"] / "evaluation.json").read_text())
    assert evaluation["heads"] == result.table


def test_progress_names_every_stage(demo: tuple[DemoResult, list[Progress]]) -> None:
    """Training and both ways of tuning say how far they are, never beyond their total."""
    told = demo[1]
    stages = {item.stage.split(":")[0] for item in told}
    assert stages == {"training the network", METHODS["paper"], METHODS["default"]}
    assert all(0 <= item.done <= item.total for item in told)


def test_a_seed_gives_the_same_numbers(
    demo: tuple[DemoResult, list[Progress]], tmp_path: Path
) -> None:
    """Another run, on another number of threads, into an earlier demonstration's folder."""
    first = demo[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = run_demo(first.files["table"].parent, seed=201, config=SMALL)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert_same_head(again.result.head, first.result.head)
    assert again.categories == first.categories


def test_other_files_are_not_replaced(tmp_path: Path) -> None:
    """A folder that holds anything else is refused before any work, and left as it was."""
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        run_demo(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """Files that do not fit are an error about the output, and no part of a demo stays."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    small = replace(SMALL, n_train=200, n_valid=100, n_test=100, epochs=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, limits[1]))
    try:
        with pytest.raises(OutputError, match="File too large"):
            run_demo(tmp_path / "demo", config=small)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    """A file cannot be the folder."""
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        run_demo(tmp_path / "out")

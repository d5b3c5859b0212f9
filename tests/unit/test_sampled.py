"""Products at known entries: compiled or by PyTorch's operators, they equal the plain loop."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from pathlib import Path

import pytest
import torch

from catwise.errors import ShapeError
from catwise.tuning.rows import sampled
from catwise.tuning.rows.sampled import KnownEntries, is_compiled

ROOT = Path(__file__).parents[2]

# rows, features, categories: whole chunks and odd ends, more rows than a block, none at all
SHAPES = [(300, 256, 7), (131, 77, 3), (5, 1, 1), (40, 129, 40), (0, 8, 3), (2_000, 130, 2)]


@pytest.fixture(params=["compiled", "tiles"])
def way(request, monkeypatch):
    if request.param == "tiles":
        monkeypatch.setattr(sampled, "_compiled", lambda: None)
        monkeypatch.setattr(sampled, "_TILE_BYTES", 1 << 14)
    elif not is_compiled():
        pytest.skip("the sampled products were not compiled here")
    return request.param


def draw(shape, *, share=0.3, dtype=torch.float32):
    n, d, c = shape
    g = torch.Generator().manual_seed(n + d + c)
    known = torch.rand(n, c, generator=g) < share
    known[: n // 8] = False
    known[:, c // 2] &= c == 1
    z = torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype)
    return known, z, torch.randn(c, d, generator=g, dtype=torch.float64).to(dtype)


def plain(known, z, w, slopes):
    """Row by row and category by category, in float64."""
    logits, gradient, at = [], torch.zeros(w.shape, dtype=torch.float64), 0
    for row in range(known.shape[0]):
        for c in range(known.shape[1]):
            if known[row, c]:
                logits.append(float(z[row].double() @ w[c].double()))
                gradient[c] += slopes[at].double() * z[row].double()
                at += 1
    return torch.tensor(logits, dtype=torch.float64), gradient


@pytest.mark.parametrize("shape", SHAPES)
def test_both_products_equal_the_plain_loop(way, shape):
    known, z, w = draw(shape)
    entries = KnownEntries(known)
    slopes = torch.linspace(-1, 1, int(known.sum()))
    logits, gradient = plain(known, z, w, slopes)
    torch.testing.assert_close(entries.forward(z, w).double(), logits, rtol=1e-5, atol=1e-4)
    found = entries.backward(z, slopes).double()
    torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-4)


def test_float64_keeps_its_digits():
    known, z, w = draw((64, 40, 5), dtype=torch.float64)
    slopes = torch.linspace(-1, 1, int(known.sum()), dtype=torch.float64)
    logits, gradient = plain(known, z, w, slopes)
    entries = KnownEntries(known)
    torch.testing.assert_close(entries.forward(z, w), logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entries.backward(z, slopes), gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [None, 150])
@pytest.mark.parametrize("as_mask", [True, False])
def test_entries_of_some_categories_are_those_of_their_columns(way, length, as_mask):
    known, z, w = draw((300, 40, 9))
    keep = torch.tensor([1, 2, 5, 8])
    given = torch.zeros(9, dtype=torch.bool).index_fill(0, keep, value=True) if as_mask else keep
    taken = KnownEntries(known, length=length).select_categories(given)
    fresh = KnownEntries(known[:, keep], length=length)
    slopes = torch.linspace(-1, 1, fresh.n_places)
    assert torch.equal(taken.forward(z, w[keep]), fresh.forward(z, w[keep]))
    assert torch.equal(taken.backward(z, slopes), fresh.backward(z, slopes))


def test_entries_by_category_lie_in_rows_of_the_length_with_zeros_behind(way):
    known, z, w = draw((300, 40, 9))
    logits = KnownEntries(known, length=150).forward(z, w).view(9, 150)
    for c in range(9):
        n = int(known[:, c].sum())
        torch.testing.assert_close(logits[c, :n], z[known[:, c]] @ w[c], rtol=1e-5, atol=1e-4)
        assert not logits[c, n:].any()


def test_slopes_behind_the_entries_do_not_count(way):
    known, z, _ = draw((300, 40, 9))
    entries = KnownEntries(known, length=150)
    slopes = torch.ones(9, 150)
    counted = torch.arange(150) < known.sum(0)[:, None]
    a, b = entries.backward(z, slopes.flatten()), entries.backward(z, (slopes * counted).flatten())
    assert torch.equal(a, b)


def test_the_number_of_threads_changes_no_bit():
    if not is_compiled():
        pytest.skip("the sampled products were not compiled here")
    known, z, w = draw((4_000, 200, 6), share=0.6)
    entries = KnownEntries(known)
    slopes = torch.randn(entries.n_places, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append((entries.forward(z, w), entries.backward(z, slopes)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for run in runs for a, b in zip(run, runs[0], strict=True))
    assert entries._n_parts > 1


def test_features_and_weights_of_any_strides_are_taken(way):
    known, z, w = draw((300, 40, 9))
    entries = KnownEntries(known)
    wide = torch.cat([z, z], 1)[:, :40]
    assert torch.equal(entries.forward(wide, w.T.contiguous().T), entries.forward(z, w))


def test_arrays_that_do_not_fit_are_refused(way):
    known, z, w = draw((300, 40, 9))
    entries = KnownEntries(known)
    with pytest.raises(ShapeError, match=r"weight \(8, 40\)"):
        entries.forward(z, w[:8])
    with pytest.raises(ShapeError, match=r"features \(299, 40\)"):
        entries.forward(z[:299], w)
    with pytest.raises(ShapeError, match="slopes"):
        entries.backward(z, torch.ones(3))


def test_more_entries_than_32_bits_count_are_refused_before_any_product(monkeypatch):
    monkeypatch.setattr(sampled, "MAX_PLACES", 10)
    with pytest.raises(ShapeError, match=r"(?s)12.*at most 10"):
        KnownEntries(torch.ones(4, 3, dtype=torch.bool))


def test_a_library_that_does_not_start_or_is_of_another_source_is_left_alone(tmp_path, monkeypatch):
    shutil.copy(sampled._FOLDER / "sampled.c", tmp_path)
    for path in sampled._FOLDER.glob("*.so"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(sampled, "_FOLDER", tmp_path)
    assert (sampled._compiled.__wrapped__() is not None) == is_compiled()
    (tmp_path / "sampled.c").write_bytes(b"/* another */")
    assert sampled._compiled.__wrapped__() is None
    for name in ("avx2", "avx512"):
        (tmp_path / f"sampled_{name}.so").unlink(missing_ok=True)  # a loaded file stays as it is
        (tmp_path / f"sampled_{name}.so").write_bytes(b"no library")
    assert sampled._compiled.__wrapped__() is None
    (tmp_path / "sampled.c").unlink()
    assert sampled._compiled.__wrapped__() is None


def test_a_processor_takes_the_lesser_library_where_the_better_one_is_missing(
    monkeypatch, tmp_path
):
    if not is_compiled():
        pytest.skip("the sampled products were not compiled here")
    for name in ("sampled.c", "sampled_avx2.so"):
        shutil.copy(sampled._FOLDER / name, tmp_path)
    monkeypatch.setattr(sampled, "_FOLDER", tmp_path)
    assert sampled._compiled.__wrapped__() is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_default_type_and_device_of_torch_are_nothing_to_it(dtype):
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with torch.device("meta"):
            found = sampled._compiled.__wrapped__()
    finally:
        torch.set_default_dtype(before)
    assert (found is not None) == is_compiled()


def test_types_and_devices_that_differ_are_refused(way):
    known, z, w = draw((300, 40, 9))
    entries = KnownEntries(known)
    with pytest.raises(ShapeError, match="float64"):
        entries.forward(z, w.double())
    with pytest.raises(ShapeError, match="float16"):
        entries.forward(z, w.half())
    with pytest.raises(ShapeError, match="meta"):
        entries.forward(z, w.to("meta"))
    with pytest.raises(ShapeError, match="float64"):
        entries.backward(z, torch.ones(entries.n_places, dtype=torch.float64))


def test_products_take_no_gradient(way):
    known, z, w = draw((300, 40, 9))
    assert not KnownEntries(known).forward(z, w.clone().requires_grad_()).requires_grad


class App:
    """What the build tool shows its user."""

    def __init__(self):
        self.warnings = []

    def display_warning(self, text):
        self.warnings.append(text)


@pytest.fixture
def hook(tmp_path, monkeypatch):
    """The build hook on a copy of the source."""
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    source = tmp_path / module._SOURCE
    source.parent.mkdir(parents=True)
    shutil.copy(ROOT / module._SOURCE, source)
    monkeypatch.delenv("CATWISE_NO_COMPILE", raising=False)
    app = App()
    made = module.CompileSampled(str(tmp_path), {}, None, None, "", "wheel", app)
    yield made, source.parent, app
    made.finalize("standard", build_data(), "")


def build_data():
    return {"force_include": {}}


needs_compiler = pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux" or shutil.which("cc") is None,
    reason="no C compiler for this platform",
)


@needs_compiler
def test_a_wheel_holds_a_library_for_each_kind_of_processor_and_the_source_tree_none(hook):
    made, folder, app = hook
    data = build_data()
    made.initialize("standard", data)
    inside = {"catwise/_native/sampled_avx512.so", "catwise/_native/sampled_avx2.so"}
    assert set(data["force_include"].values()) == inside
    built = [Path(p) for p in data["force_include"]]
    assert all(p.is_file() for p in built)
    assert data["tag"] == "py3-none-linux_x86_64"
    assert data["pure_python"] is False
    assert app.warnings == []
    made.finalize("standard", data, "")
    assert not any(p.exists() for p in built)
    assert [p.name for p in folder.iterdir()] == ["sampled.c"]


@needs_compiler
def test_an_editable_installation_has_them_beside_the_source(hook, monkeypatch):
    made, folder, _ = hook
    made.initialize("editable", build_data())
    assert len(list(folder.glob("*.so"))) == 2
    assert len(list(folder.iterdir())) == 3
    monkeypatch.setattr(sampled, "_FOLDER", folder)
    assert sampled._compiled.__wrapped__() is not None


@needs_compiler
@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", "true", 'gcc "x', "cat"])
def test_a_compiler_that_fails_is_said_and_stops_nothing(hook, monkeypatch, compiler):
    made, folder, app = hook
    (folder / "sampled_avx2.so").write_bytes(b"from an earlier version")
    monkeypatch.setenv("CC", compiler)
    data = build_data()
    made.initialize("editable", data)
    assert data == build_data()
    assert not list(folder.glob("*.so"))
    assert len(app.warnings) == 2
    assert "was not built" in app.warnings[0]


@pytest.mark.parametrize(("name", "value"), [("CATWISE_NO_COMPILE", "1"), ("PATH", "")])
def test_without_a_compiler_or_by_request_nothing_is_compiled(hook, monkeypatch, name, value):
    made, folder, app = hook
    (folder / "sampled_avx2.so").write_bytes(b"from an earlier version")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv(name, value)
    data = build_data()
    made.initialize("editable", data)
    assert data == build_data()
    assert not list(folder.glob("*.so"))
    assert app.warnings == []

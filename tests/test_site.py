"""The site of docs/ builds without a warning, loads nothing from elsewhere, and is complete."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import catwise

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PUBLIC = [
    "data",
    "decisions",
    "demo",
    "engines",
    "errors",
    "features",
    "fixing",
    "heads",
    "labels",
    "losses",
    "metrics",
    "models",
    "plots",
    "predicting",
    "progress",
    "reporting",
    "studies",
    "testing",
    "training",
    "tuning",
]
# Elements and attributes by which a page loads something as it is opened.
_LOADS = {
    "img": ("src", "srcset"), "script": ("src",), "iframe": ("src",), "source": ("src", "srcset"),
    "video": ("src", "poster"), "audio": ("src",), "embed": ("src",), "object": ("data",),
    "image": ("href", "xlink:href"), "use": ("href", "xlink:href"),
}  # fmt: skip
_IN_STYLE = re.compile(r"""(?:url\(\s*|@import\s+)["']?\s*((?:https?:)?//[^"')\s]+)""")
_IN_SCRIPT = re.compile(
    r"""(?:import|fetch|importScripts|XMLHttpRequest|\.src\s*=)[\s(]*["'`]((?:https?:)?//[^"'`]+)"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `scripts/docs` builds it."""
    if sys.version_info < (3, 11):
        pytest.skip("the site is built on Python 3.11 or newer")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


class _Loaded(HTMLParser):
    """Collects what a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.urls += [given[name] for name in _LOADS.get(tag, ()) if name in given]
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev", "author"):
            self.urls.append(given.get("href", ""))
        self.urls += _IN_STYLE.findall(given.get("style", ""))


def external(page: str) -> list[str]:
    """What a page asks of another host."""
    parser = _Loaded()
    parser.feed(page)
    return [url for url in parser.urls if re.match(r"\s*(https?:)?//", url)]


def test_requests_are_seen() -> None:
    """What is loaded from elsewhere counts, a link to elsewhere does not."""
    page = '<a href="https://a.org"></a><img src="b.png"><script src="//c.org/d.js"></script>'
    assert external(page + '<link rel="stylesheet" href="https://e.org/f.css">') == [
        "//c.org/d.js",
        "https://e.org/f.css",
    ]
    assert _IN_STYLE.findall("@import 'https://g.org/h.css'; a { background: url(i.png) }") == [
        "https://g.org/h.css"
    ]


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """Fonts, scripts, styles and the search are the site's own."""
    found = {}
    for path in sorted(site.rglob("*")):
        text = path.read_text("utf-8", errors="replace") if path.is_file() else ""
        urls = {
            ".html": lambda text: external(text) + _IN_STYLE.findall(text),
            ".css": _IN_STYLE.findall,
            ".js": _IN_SCRIPT.findall,
        }.get(path.suffix, lambda _: [])(text)
        if urls:
            found[path.relative_to(site).as_posix()] = urls
    assert found == {}
    assert (site / "searchindex.js").stat().st_size > 100_000


def test_every_public_name_is_described(site: Path) -> None:
    """Each name of an `__all__` has an anchor in the reference."""
    pages = "".join(path.read_text("utf-8") for path in (site / "api").glob("*.html"))
    anchors = set(re.findall(r'id="(catwise[\w.]*)"', pages))
    wanted = {f"catwise.{name}" for name in catwise.__all__ if not name.startswith("__")}
    for package in PUBLIC:
        module = importlib.import_module(f"catwise.{package}")
        names = set(module.__all__) - set(catwise.__all__)
        wanted |= {
            f"catwise.{package}.{name}"
            for name in names
            if not isinstance(getattr(module, name), type(importlib))
        }
    assert sorted(wanted - anchors) == []


def test_public_packages_are_listed() -> None:
    """A package that users can import has a part in the reference."""
    there = {
        path.stem
        for path in (ROOT / "src" / "catwise").iterdir()
        if not path.name.startswith("_")
        and (path.suffix == ".py" or (path / "__init__.py").is_file())
    }
    # The command line has its own page; the classifier is in `catwise`; joining is inside.
    assert there - {"cli", "estimator", "joining"} == set(PUBLIC)


def test_every_page_is_in_the_navigation(site: Path) -> None:
    """Each page of docs/ is reached from the first one."""
    index = (site / "index.html").read_text("utf-8")
    pages = [
        path.relative_to(DOCS).with_suffix(".html")
        for path in [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]
    ]
    hidden = [page.as_posix() for page in pages if f'href="{page.as_posix()}"' not in index]
    assert [page for page in hidden if page not in ("index.html", "api/index.html")] == []


def numbers_apart(text: str) -> tuple[str, list[float]]:
    """A text without its numbers, and the numbers."""
    pattern = re.compile(r"-?\d+\.\d+|-?\d+")
    return pattern.sub("#", text), [float(number) for number in pattern.findall(text)]


def test_figures_are_what_their_code_makes(tmp_path: Path) -> None:
    """The figures of docs/cft.md come out equal byte for byte, and as they are in the repository.

    Against the repository positions may differ by a pixel: another processor rounds otherwise.
    """
    spec = importlib.util.spec_from_file_location("cft", DOCS / "figures" / "cft.py")
    assert spec is not None
    assert spec.loader is not None
    cft = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cft)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        cft.write_figures(tmp_path / name)
    for path in sorted((tmp_path / "one").iterdir()):
        made = path.read_text("utf-8")
        assert made == (tmp_path / "two" / path.name).read_text("utf-8")
        assert len(made) < 60_000
        text, numbers = numbers_apart(made)
        stored, positions = numbers_apart((DOCS / "figures" / path.name).read_text("utf-8"))
        assert (path.name, text) == (path.name, stored)
        assert numbers == pytest.approx(positions, abs=1.0)

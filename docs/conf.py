"""How the site of these pages is built: `scripts/docs`, warnings as errors, without a network."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

import catwise

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "catwise"
author = "The catwise developers"
version = release = catwise.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
templates_path: list[str] = []

# Pages: the same Markdown that a forge shows, headings linked as it links them.
myst_heading_anchors = 4
nb_execution_mode = "off"  # notebooks are run by the tests, and shown as they are stored

# Docstrings: `name` in them is code; types are looked up among the public names.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_custom_sections = [("Source", "notes_style")]
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
nitpicky = True
# No inventory of another project is fetched, so types are linked where they are ours, not demanded.
nitpick_ignore_regex = [("py:class", r".*")]
toc_object_entries = False

html_theme = "furo"
html_title = "catwise"
html_copy_source = False
html_show_sourcelink = False
html_static_path: list[str] = []


def _described(module: str, name: str) -> list[str]:
    """The directives that document one public name."""
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value):
        kind = "autoexception" if issubclass(value, BaseException) else "autoclass"
        return [f".. {kind}:: {module}.{name}", "   :members:", "   :inherited-members:", ""]
    if inspect.isroutine(value):
        return [f".. autofunction:: {module}.{name}", ""]
    if inspect.ismodule(value):
        return []
    shown = ", ".join(map(repr, value)) if isinstance(value, (tuple, list, dict)) else repr(value)
    return [f".. py:data:: {name}", "", f"   ``{shown}``", ""]


class PublicNames(SphinxDirective):
    """Documents what a module's `__all__` names; what `catwise` itself gives is there alone."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Parse the directives of autodoc for each name."""
        module = self.arguments[0]
        names = importlib.import_module(module).__all__
        top = () if module == "catwise" else catwise.__all__
        lines = [f".. py:currentmodule:: {module}", ""]
        for name in sorted(set(names) - set(top)):
            lines += _described(module, name) if not name.startswith("__") else []
        self.env.note_dependency(__file__)
        return self.parse_content_to_nodes_of(StringList(lines, source=module))

    def parse_content_to_nodes_of(self, content: StringList) -> list[nodes.Node]:
        """The nodes that the lines make."""
        node = nodes.section()
        node.document = self.state.document
        self.state.nested_parse(content, 0, node)
        return node.children


def _skip(app: Sphinx, what: str, name: str, value: Any, *decided: Any) -> bool | None:
    """Leave out what a class has from elsewhere, and fields, which its docstring describes."""
    del app, what, name, decided
    owner = getattr(value, "__objclass__", None)
    module = getattr(value, "__module__", None) or getattr(owner, "__module__", "catwise")
    is_field = (getattr(value, "__doc__", None) or "").startswith("Alias for field number")
    return True if is_field or not str(module).startswith("catwise") else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("public-names", PublicNames)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True}

"""The site: `make docs` builds these pages, results/ and the notebooks into build/docs, without a network.

The pages are read on GitHub as well, so they hold no directives: the tree of the site is made of the links on the pages
of SECTIONS, the command line and the Python API are described by what the program says of itself.
"""

import posixpath
import re
import subprocess
import sys
from pathlib import Path

import stedm

HERE = Path(__file__).parent
SECTIONS = ["docs/index", "docs/howto", "docs/explanation", "docs/reference", "results/README"]
"""Pages whose links to pages are their children; of a finding's page only those into its own folder are."""

project, author, release = "stedm", "the stedm authors", stedm.__version__
copyright = "the stedm authors, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "results/**.md", "examples/*.ipynb", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [".*", "runs", "src", "tests", "benchmarks", "build"]

myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # tables of results begin with a heading of the second level
highlight_language = "bash"
nb_execution_mode = "off"  # tests/test_notebooks.py executes them
default_role = "literal"  # docstrings say `this` for code
toc_object_entries = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say shapes and ranges, and signatures stay short
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "pydata_sphinx_theme"
html_title = "stedm"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_extra_path = ["site"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "article_footer_items": [],
}


def children(name: str, text: str) -> list[str]:
    """Pages that a page links to and that stand below it in the tree of the site, in the order of the links."""
    folder = posixpath.dirname(name)
    linked = re.findall(r"\]\(([^)#:]+)\.(?:md|ipynb)\)", text)  # not those to a heading
    pages = [posixpath.normpath(posixpath.join(folder, page)) for page in linked]
    if name == root_doc:
        pages = [page for page in pages if page in (*SECTIONS, "docs/getting_started")]
    elif name not in SECTIONS:
        is_finding = name.startswith("results/") and name.endswith("/README")
        pages = [page for page in pages if is_finding and page.startswith(f"{folder}/")]
    return list(dict.fromkeys(pages))


def _complete(_app, name: str, source: list[str]) -> None:
    """Links to what exists on the site alone, and the pages below this one."""
    if name == "docs/reference":
        source[0] = source[0].replace("`stedm --help`", "[`stedm --help`](generated/cli.md)")
        source[0] = source[0].replace("`help(stedm)`", "[`help(stedm)`](generated/api.md)")
    if name.startswith("results/"):
        # A protocol is committed before any page links to it.
        source[0] = f"---\norphan: true\n---\n{source[0]}"
    if below := children(name, source[0]):
        source[0] += "\n\n```{toctree}\n:hidden:\n\n" + "".join(f"/{page}\n" for page in below) + "```\n"


def _write_reference(_app) -> None:
    """Pages of what can be asked: the verbs with their flags (by Typer), and what `import stedm` shows (by autodoc)."""
    folder = HERE / "generated"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "typer", "stedm.cli", "utils", "docs", "--name", "stedm"]
    command += ["--title", "Command line"]
    verbs = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (folder / "cli.md").write_text(verbs, encoding="utf-8")
    shown = [name for name in stedm.__all__ if name != "__version__"]
    (folder / "api.md").write_text("# Python API\n" + "".join(map(_described, shown)), encoding="utf-8")


def _described(name: str) -> str:
    kind = "autoclass" if isinstance(getattr(stedm, name), type) else "autofunction"
    members = "   :members:\n" if kind == "autoclass" else ""
    return f"\n## {name}\n```{{eval-rst}}\n.. {kind}:: stedm.{name}\n{members}```\n"


def setup(app) -> None:
    app.connect("builder-inited", _write_reference)
    app.connect("source-read", _complete)

"""Documentation: docstrings as pages, README, the changes, the notebooks' cells."""

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path
from types import ModuleType

import numpy as np
import pdoc
import pytest

import fairjax as fj

PACKAGE = Path(fj.__file__).parent
ROOT = PACKAGE.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The HTML pages of the public surface, by module."""
    folder = tmp_path_factory.mktemp("pages")
    pdoc.render.configure(docformat="google", math=True)
    pdoc.pdoc("fairjax", output_directory=folder)
    return {
        ".".join(path.relative_to(folder).with_suffix("").parts): path.read_text()
        for path in folder.rglob("*.html")
    }


def test_every_public_docstring_renders(pages):
    for name in fj.__all__:
        module = getattr(fj, name)
        if isinstance(module, ModuleType):
            page = pages[f"fairjax.{name}"]
            assert all(f'id="{entry}"' in page for entry in public_names(module)), name
        else:
            assert f'id="{name}"' in pages["fairjax"]
    for name, page in pages.items():
        unrendered = re.search(r"<p>(Args|Attributes|Returns|Raises|Examples|References):", page)
        assert not unrendered, f"{name}: {unrendered}"
    assert "<h6" in pages["fairjax.rewards"]


def public_names(module):
    own = [
        name
        for name, value in vars(module).items()
        if callable(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]
    return getattr(module, "__all__", own)


def test_equations_of_the_first_lines_are_kept_as_they_are_set(pages):
    page = pages["fairjax.rewards"]
    block = page[page.index("<pre>") : page.index("</pre>")]
    assert "tanh(beta r_i) / max_j tanh(beta r_j)" in block


def snippets(kind):
    """README's code blocks of a kind, each with the text up to the next one."""
    pieces = re.split(rf"```{kind}\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    return list(zip(pieces[1::2], pieces[2::2], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(snippets("python"))))
def test_a_snippet_of_the_readme_runs_and_prints_what_stands_below_it(number, capsys):
    code, below = snippets("python")[number]
    exec(compile(code, f"README, snippet {number}", "exec"), {})
    printed = capsys.readouterr().out.strip()
    if printed:
        told = re.search(r"prints `(.*?)`", below, flags=re.DOTALL)
        assert told, f"README does not say that this prints `{printed}`"
        found, texts = zip(*map(apart, (told[1], printed)), strict=True)
        assert texts[0] == texts[1]
        # Other processors round differently, and 80 rounds make more of it.
        np.testing.assert_allclose(*found, atol=0.015)


def apart(printed):
    """The numbers with a point in a text, and the text without them."""
    number = re.compile(r"\d+\.\d*")
    return [float(one) for one in number.findall(printed)], number.sub("", printed)


def test_the_readme_is_short_and_its_files_exist():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 180
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / path).exists(), path


def test_the_changes_come_with_the_package_and_name_its_version():
    changes = (PACKAGE / "CHANGELOG.md").read_text()
    assert f"## {importlib.metadata.version('fairjax')}" in changes


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_in_colab_and_installs_fairjax_where_it_is_missing(path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    repository = project["urls"]["Repository"]
    cells = json.loads(path.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    owner_and_name = repository.removeprefix("https://github.com/")
    assert f"/github/{owner_and_name}/blob/main/notebooks/{path.name}" in sources[0]
    code = [
        source for source, cell in zip(sources, cells, strict=True) if cell["cell_type"] == "code"
    ]
    assert f"git+{repository}" in code[0]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_a_figure_within_ten_cells_and_ran_from_top_to_bottom(path):
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [out for cell in cells[:10] for out in cell.get("outputs", [])]
    assert any("image/png" in out.get("data", {}) for out in outputs)
    assert not any(out["output_type"] == "error" for cell in code for out in cell["outputs"])

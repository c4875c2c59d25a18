"""British spelling in what people read: pages, notebooks, comments.

Typing errors are codespell's to find (`make lint`). It cannot tell prose from
code, where ``color`` and ``normalize`` are other people's names, so what is
British is checked here, with codespell's list of word pairs.
"""

import ast
import io
import re
import tokenize
from importlib.resources import files
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from notebooks import ROOT, TEMPLATE, paths, read

# American forms that are British words too, in another sense or as a verb.
BRITISH_AS_WELL = {
    "biased",
    "dialog",
    "dialogs",
    "focused",
    "focuses",
    "focusing",
    "license",
    "licensed",
    "licenses",
    "licensing",
    "math",
    "meter",
    "meters",
    "practice",
    "practices",
    "program",
    "programs",
    "routing",
    "specialties",
    "specialty",
    "stories",
    "story",
    "tire",
    "tires",
    "writable",
}
# The list cannot know every verb. This book writes -ise; sizes stay.
IZE = re.compile(r"[a-z]{3,}(?<!s)iz(e[ds]?|ers?|ing|ations?)")
NO_PROSE = re.compile(
    r"```.*?```"  # code and diagrams
    r"|`[^`]+`"  # names
    r"|https?://\S+"
    r"|\w+-color\w*(-\w+)*"  # properties of style sheets
    r"|\n#+ References\n.*"  # titles keep the spelling of their authors
    r"|\]\([^)]*\)"  # where a link leads
    r"|\n +\w+(, \w+)*( : [^\n]*)?(?=\n)",  # parameters and their type
    re.DOTALL,
)


def _american():
    """Map each American form to the British one."""
    name = "dictionary_en-GB_to_en-US.txt"
    text = (files("codespell_lib") / "data" / name).read_text()
    pairs = [line.split("->") for line in text.splitlines()]
    found = {}
    for british, american in pairs:
        for word in american.split(","):
            found.setdefault(word.strip(), british)
    return {k: v for k, v in found.items() if k not in BRITISH_AS_WELL}


AMERICAN = _american()


def _comments(source):
    """Take the comments, the docstrings and the messages out of code."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    texts = [t.string for t in tokens if t.type == tokenize.COMMENT]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            # Fewer words may be a style, a selector or a place for a legend.
            texts += [node.value] * (node.value.count(" ") > 3)
    return "\n".join(texts)


def _of_notebook(path):
    texts = []
    for cell in read(path).cells:
        is_code = cell.cell_type == "code"
        texts.append(_comments(cell.source) if is_code else cell.source)
        image = cell.metadata.get("mystnb", {}).get("image", {})
        texts.append(image.get("alt", ""))
    return "\n".join(texts)


def _prose(path):
    """Read what a file says to people."""
    if path.suffix == ".ipynb":
        return _of_notebook(path)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return _comments(text)
    if path.suffix == ".html":
        soup = BeautifulSoup(text, "html.parser")
        for tag in soup.find_all("style"):
            tag.decompose()
        return soup.get_text(" ")
    return text


def _complaints(prose):
    words = set(re.findall(r"[a-z]+", NO_PROSE.sub(" ", prose).lower()))
    found = {word: AMERICAN[word] for word in words & set(AMERICAN)}
    ize = {word for word in words - set(found) if IZE.fullmatch(word)}
    return found | {word: word.replace("iz", "is") for word in ize}


PATTERNS = (
    "*.md",
    "book/*.md",
    "book/_ext/*.py",
    "book/_figures/*.html",
    "healthgym_utils/*.py",
    "tools/*.py",
    "benchmarks/*.py",
    "tests/**/*.py",
)
FILES = [path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))]
FILES += [*paths(), TEMPLATE]
FILES.remove(Path(__file__))


@pytest.mark.parametrize(
    "path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_spelling_is_british(path):
    assert _complaints(_prose(path)) == {}


@pytest.mark.parametrize(
    ("prose", "found"),
    [
        ("The color of behavior.", {"color", "behavior"}),
        ("The colour of `color`, normalised.", set()),
        ("Normalize it, discretized.", {"normalize", "discretized"}),
        ("The size of a prize: resized, seized.", set()),
        ("```python\ncolor\n```\nSee https://a.org/center.", set()),
        ("Text.\n\n## References\n\n- Layer normalization.", set()),
    ],
)
def test_american_forms_are_found(prose, found):
    assert set(_complaints(prose)) == found


def test_code_is_no_prose():
    source = (
        'ax.legend(loc="outside upper center", color="red")  # the center'
        '\n"""Do not even optimize it."""\n'
    )
    assert set(_complaints(_comments(source))) == {"center", "optimize"}

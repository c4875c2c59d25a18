"""No code runs data or fetches what nobody checks, and no output runs code."""

import ast
import html
import json
import re
from importlib import resources

import pytest
from bs4 import BeautifulSoup
from nbformat import v4

from notebooks import ROOT, TEMPLATE, paths, read, tags

# How the names end of those that start a program: a list or a vector of
# arguments, with or without a search for the program and an environment.
ENDINGS = ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")
# What runs code that comes as data, starts a program, or asks a network; with
# all that lies inside it. This is against slips and habits: who hides a call
# on purpose can hide it from here.
RISKS = (
    *("__import__", "builtins", "compile", "eval", "exec"),
    *("importlib.import_module", "importlib.reload", "runpy"),
    # Not "code" alone, which is a good name for a variable.
    *("code.InteractiveConsole", "code.InteractiveInterpreter"),
    *("code.compile_command", "code.interact", "codeop"),
    *("_pickle", "cloudpickle", "dill", "joblib", "marshal", "pickle"),
    "shelve",
    *("pandas.eval", "pandas.read_pickle"),
    *("torch.hub", "torch.jit.load", "torch.load", "torch.save"),
    "torch.serialization",
    *("yaml.full_load", "yaml.load", "yaml.unsafe_load"),
    *("ctypes", "pty", "subprocess", "os.popen", "os.startfile", "os.system"),
    *("os.posix_spawn", "os.posix_spawnp"),
    *(f"os.{way}{end}" for way in ("exec", "spawn") for end in ENDINGS),
    *("asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"),
    *("aiohttp", "ftplib", "http", "httpx", "huggingface_hub", "pooch"),
    *("requests", "socket", "urllib.request", "urllib3"),
)
RISKY_METHODS = {"to_pickle", "run_cell_magic", "run_line_magic"}
# A table's, which run what their text says; see is_plain.
EVALUATING_METHODS = {"eval", "query"}
# These open a path, or else fetch an address.
READERS = re.compile(r"read_\w+|genfromtxt|loadtxt")
ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# Arguments, each with the one value that is no risk.
RISKY_ARGUMENTS = {"allow_pickle": False, "shell": False, "verify": True}

CHECKED = "_CheckedDownloader refuses what is not the published cohort"
LESSON = "shows on a harmless program why the package pickles nothing"
ALLOWED = {
    ("benchmarks/scaling.py", "subprocess"): "starts our own training",
    ("healthgym_utils/data.py", "pooch"): CHECKED,
    ("healthgym_utils/data.py", "requests"): CHECKED,
    ("healthgym_utils/doctor.py", "ctypes"): "asks Windows for its memory",
    ("healthgym_utils/doctor.py", "importlib.import_module"): (
        "tries the package's own dependencies"
    ),
    ("healthgym_utils/doctor.py", "requests"): "asks for headers, no body",
    ("tools/workshop.py", "subprocess"): "runs pip",
    ("notebooks/14_save_and_resume.ipynb", "pickle"): LESSON,
    ("notebooks/14_save_and_resume.ipynb", "torch.load"): LESSON,
    ("notebooks/14_save_and_resume.ipynb", "torch.save"): LESSON,
}
# All that these files may use of a module that asks a network.
NETWORKING = {
    ("data", "pooch"): {
        *("pooch", "pooch.HTTPDownloader", "pooch.Pooch"),
        *("pooch.create", "pooch.os_cache"),
    },
    ("data", "requests"): {
        *("requests", "requests.ConnectionError", "requests.Response"),
        *("requests.RequestException", "requests.Timeout"),
        *("requests.exceptions", "requests.exceptions.ChunkedEncodingError"),
    },
    ("doctor", "requests"): {"requests", "requests.head"},
}
NO_SOURCES = {"tests", *(ROOT / ".gitignore").read_text().split()}
NO_SOURCES = {name.rstrip("/") for name in NO_SOURCES}
NOTEBOOKS = [*paths(), TEMPLATE]
SCRIPTS = sorted(
    path
    for path in ROOT.rglob("*.py")
    if not NO_SOURCES & {*path.relative_to(ROOT).parts}
)


class Spelled(ast.NodeTransformer):
    """Write getattr(x, "name") as x.name; with a default, x.name or it."""

    def visit_Call(self, call):
        self.generic_visit(call)
        match call:
            case ast.Call(
                func=ast.Name("getattr"),
                args=[owner, ast.Constant(str() as name), *default],
            ):
                plain = ast.Attribute(owner, name, ast.Load())
                if not default:
                    return plain
                return ast.BoolOp(ast.Or(), [plain, *default])
        return call


def imported(node):
    """Return what an import binds: each name, and what it stands for."""
    if isinstance(node, ast.ImportFrom):
        return {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for alias in node.names
        }
    return {
        alias.asname or alias.name.partition(".")[0]: alias.name
        if alias.asname
        else alias.name.partition(".")[0]
        for alias in node.names
    }


def dotted(node, known):
    """Spell a name out as it was imported; None if it is no plain name."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        before = dotted(node.value, known)
        return before and f"{before}.{node.attr}"
    return None


def arguments(call):
    """Name a call's arguments that are not known to be safe."""
    return {
        f"{argument.arg}="
        for argument in call.keywords
        if argument.arg in RISKY_ARGUMENTS
        and getattr(argument.value, "value", None)
        is not RISKY_ARGUMENTS[argument.arg]
    }


def is_plain(call):
    """Whether a call evaluates nothing, or a text that calls nothing.

    Without arguments it is a network's, which goes into evaluation mode. In
    a text, @ reaches the variables around it.
    """
    match call:
        case ast.Call(args=[], keywords=[]):
            return True
        case ast.Call(args=[ast.Constant(str() as text)], keywords=[]):
            return not re.search("[@(]", text)
    return False


def is_address(node, addresses):
    """Whether this is a text with a web address, or is named as one."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and bool(ADDRESS.match(node.value))
    name = getattr(node, "id", getattr(node, "attr", ""))
    return name in addresses or name.upper().endswith("URL")


def fetches(nodes, known):
    """Name the calls that read an address."""
    addresses = {
        target.id
        for node in nodes
        if isinstance(node, ast.Assign)
        and any(is_address(part, ()) for part in ast.walk(node.value))
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for call in nodes:
        if not isinstance(call, ast.Call):
            continue
        name = dotted(call.func, known) or getattr(call.func, "attr", "")
        name = name.rpartition(".")[2]
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        parts = [part for argument in given for part in ast.walk(argument)]
        if READERS.fullmatch(name) and any(
            is_address(part, addresses) for part in parts
        ):
            yield f"{name}(address)"


def evaluations(nodes):
    """Name the methods that may evaluate any text, called or passed on."""
    plain = [
        node.func
        for node in nodes
        if isinstance(node, ast.Call) and is_plain(node)
    ]
    return {
        f".{node.attr}"
        for node in nodes
        if isinstance(node, ast.Attribute)
        and node.attr in EVALUATING_METHODS
        and node not in plain
    }


def parsed(source):
    """List the nodes of Python code, and what its imports bind."""
    nodes = list(ast.walk(Spelled().visit(ast.parse(source))))
    known = {}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            known |= imported(node)
    return nodes, known


def used(nodes, known):
    """Spell out all names that code imports or uses."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        # Not calls alone: a function can be passed on, and called elsewhere.
        elif isinstance(node, ast.Name | ast.Attribute):
            names.add(dotted(node, known) or "")
    return names


def is_unknown(call, known):
    """Whether a call gets from what was imported what nobody can foretell."""
    match call:
        case ast.Call(func=ast.Name("getattr"), args=[owner, *_]):
            root = (dotted(owner, {}) or "").partition(".")[0]
            return root in known
    return False


def risks(source):
    """Name the risks that Python code takes."""
    nodes, known = parsed(source)
    names = used(nodes, known)
    found = {*fetches(nodes, known), *evaluations(nodes)}
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr in RISKY_METHODS:
            found.add(f".{node.attr}")
        if isinstance(node, ast.Call):
            found |= arguments(node)
        if is_unknown(node, known):
            found.add("getattr")
    return found | {
        risk
        for risk in RISKS
        for name in names
        if f"{name}.".startswith(f"{risk}.")
    }


def code(notebook):
    """Join a notebook's code; the setup cell is the template's, see below."""
    return "\n\n".join(
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "code" and "setup" not in tags(cell)
    )


@pytest.mark.parametrize(
    ("source", "risk"),
    [
        ("import pickle as p\np.loads(b'')", "pickle"),
        ("from pickle import loads", "pickle"),
        ("import torch as t\nt.load('x.pt')", "torch.load"),
        ("from torch import load\nways = [load]", "torch.load"),
        ("import yaml\nyaml.load('')", "yaml.load"),
        ("eval('1')", "eval"),
        ("import os\nos.system('ls')", "os.system"),
        ("import urllib.request", "urllib.request"),
        ("from urllib import request", "urllib.request"),
        (
            "import numpy as np\nnp.load('x', allow_pickle=yes)",
            "allow_pickle=",
        ),
        ("run('ls', shell=True)", "shell="),
        ("get('https://x', verify=False)", "verify="),
        ("table.to_pickle('x')", ".to_pickle"),
        ("import _pickle\n_pickle.loads(b'')", "_pickle"),
        (
            "import torch\ntorch.serialization.load('x', weights_only=False)",
            "torch.serialization",
        ),
        ("import os\nos.execv('x', [])", "os.execv"),
        ("from os import execlpe", "os.execlpe"),
        ("import os\nos.spawnvp(os.P_WAIT, 'x', [])", "os.spawnvp"),
        ("import os\nos.posix_spawn('x', [], {})", "os.posix_spawn"),
        ("import os\nos.posix_spawnp('x', [], {})", "os.posix_spawnp"),
        (
            "import code\ncode.InteractiveInterpreter().runsource('1')",
            "code.InteractiveInterpreter",
        ),
        ("from code import interact as talk", "code.interact"),
        ("import codeop", "codeop"),
        ("import os\ngetattr(os, 'system')('ls')", "os.system"),
        ("import os\ngetattr(os, 'system', None)('ls')", "os.system"),
        ("import os\ngetattr(x, 'y', os.system)('ls')", "os.system"),
        ("import os\ngetattr(os.path, name)('ls')", "getattr"),
        ("getattr(table, 'query')(text)", ".query"),
        ("table.query(text)", ".query"),
        ("table.query(f'age > {text}')", ".query"),
        ("table.query('@os.abort() > 1')", ".query"),
        ("table.query('@os > 1')", ".query"),
        ("table.query('age.sum() > 1')", ".query"),
        ("table.query(expr=text)", ".query"),
        ("ways = [table.query]", ".query"),
        ("table.eval('a + b', engine='python')", ".eval"),
        (
            "import pandas as pd\npd.read_csv('http://x')",
            "read_csv(address)",
        ),
        ("from pandas import read_csv as r\nr('s3://x')", "read_csv(address)"),
        ("read_json(path_or_buf='HTTPS://x')", "read_json(address)"),
        ("here().read_html(f'https://{x}')", "read_html(address)"),
        ("page = 'https://' + x\nread_csv(page)", "read_csv(address)"),
        ("read_csv(data.FIGSHARE_URL)", "read_csv(address)"),
        ("np.loadtxt('ftp://x')", "loadtxt(address)"),
    ],
)
def test_a_risk_is_seen(source, risk):
    assert risk in risks(source)


def test_what_looks_alike_is_no_risk():
    assert not risks(
        "import re, torch, yaml, urllib.parse\nre.compile('x')\n"
        "torch.nn.Linear(1, 1).eval()\nyaml.safe_load('')\n"
        "urllib.parse.urlsplit('x')\nrun(['ls'], shell=False)\n"
        "import os\nos.fspath('x')\nexecutor.submit(spawn)\n"
        "getattr(os, 'cpu_count')()\ngetattr(figure, name)(1)\n"
        "code = codes[0]\ncode.interactive\n"
        "table.query(\"age > 1 and name == 'v1'\")\ntable.eval('a + b')\n"
        "pd.read_csv('http.csv')\npd.read_csv(path, names=['http'])\n"
        "open_page('https://x')\npath.read_text('utf-8')"
    )


def test_code_takes_no_risk_but_those_allowed_here():
    sources = {path: path.read_text(encoding="utf-8") for path in SCRIPTS}
    sources |= {path: code(read(path)) for path in NOTEBOOKS}
    found = {
        (path.relative_to(ROOT).as_posix(), risk)
        for path, source in sources.items()
        for risk in risks(source)
    }
    assert found - {*ALLOWED} == set(), "a new risk; is there another way?"
    assert {*ALLOWED} - found == set(), "no longer taken; strike it off"


@pytest.mark.parametrize(("module", "asking"), NETWORKING)
def test_no_more_of_the_network_is_used(module, asking):
    """The files are allowed these modules above; not all that is in them."""
    source = (ROOT / "healthgym_utils" / f"{module}.py").read_text("utf-8")
    names = used(*parsed(source))
    found = {name for name in names if f"{name}.".startswith(f"{asking}.")}
    assert found == NETWORKING[module, asking]


def test_the_setup_cell_only_runs_pip():
    """That all notebooks have the template's is for test_contract to say."""
    (setup,) = (c for c in read(TEMPLATE).cells if "setup" in tags(c))
    assert risks(setup.source) == {"subprocess"}
    assert "[sys.executable, " in setup.source


def test_only_the_cohort_is_downloaded_without_a_hash():
    """None is the hash of a file that pooch takes as it comes.

    That file's hash is not stated anywhere that could be read when this was
    written; it is checked column by column and row by row instead, and
    monthly against the hash that figshare states.
    """
    tree = ast.parse((ROOT / "healthgym_utils" / "data.py").read_text())
    (registry,) = (
        keyword.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "registry"
    )
    assert [key.id for key in registry.keys] == ["FIGSHARE_NAME"]


@pytest.mark.parametrize(
    "folder", ["checkpoints", "results", "tables", "templates"]
)
def test_package_data_are_of_kinds_that_hold_no_program(folder):
    kinds = {p.suffix for p in (ROOT / "healthgym_utils" / folder).iterdir()}
    assert kinds <= {".csv", ".html", ".json", ".md", ".safetensors"}


def test_every_requirement_of_the_workshop_has_a_hash():
    lines = (ROOT / "requirements-workshop.txt").read_text()
    lines = re.sub(r"^#.*\n", "", lines, flags=re.MULTILINE)
    for requirement in lines.replace("\\\n", "").splitlines():
        assert re.match(r"[\w.-]+==\S+ .*--hash=sha256:\w{64}", requirement)


def test_every_requirement_is_pinned():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    for requirement in lines:
        assert re.match(r"#|[\w.-]+==[\w.]+$", requirement)


def player():
    """Make a pattern of the player's template, as plots.py fills it in."""
    holes = {
        "name": "player-[0-9a-f]{12}",
        "alt": '[^<>"]+',
        "caption": '[^<>"]*',
        "picture": "data:image/webp;base64,[A-Za-z0-9+/=]+",
        "start": "[0-9]+",
        "last": "[0-9]+",
        "milliseconds": "[0-9]+",
        "captions": r"\[[^\n<]*\]",
        "pictures": r"\[[^\n<]*\]",
    }
    template = resources.files("healthgym_utils") / "templates" / "player.html"
    # The second time a value is filled in, it is the same one.
    pieces = re.split(r"\$(\w+)", template.read_text(encoding="utf-8"))
    pattern = re.escape(pieces[0])
    for name, literal in zip(pieces[1::2], pieces[2::2], strict=True):
        hole = holes.pop(name, None)
        pattern += f"(?P<{name}>{hole})" if hole else f"(?P={name})"
        pattern += re.escape(literal)
    assert not holes
    return re.compile(pattern)


PLAYER = player()


def is_player(markup):
    """Whether this is what plots.player makes, and has no script but its."""
    found = PLAYER.fullmatch(markup)
    if not found:
        return False
    try:
        pictures = json.loads(found["pictures"])
        captions = json.loads(found["captions"])
    except ValueError:  # an expression, and no list of texts
        return False
    address = re.compile(r"data:image/webp;base64,[A-Za-z0-9+/=]+")
    return (
        len(pictures) == len(captions)
        and all(map(address.fullmatch, pictures))
        and all(isinstance(caption, str) for caption in captions)
    )


# Elements of which tables are made; no other can run, frame, fetch or submit.
HARMLESS = re.compile(
    "div|p|span|br|b|em|strong|sub|sup|code|style|"
    "table|caption|thead|tbody|tfoot|tr|th|td"
)
HARMLESS_ATTRIBUTES = re.compile(
    "id|class|style|scoped|scope|border|halign|valign|colspan|rowspan"
)


def faults(markup):
    """List what stored markup holds besides tables."""
    found = []
    for element in BeautifulSoup(markup, "html.parser").find_all(True):
        if not HARMLESS.fullmatch(element.name):
            found.append(f"<{element.name}>")
        found += [
            f"{element.name} {name}="
            for name in element.attrs
            if not HARMLESS_ATTRIBUTES.fullmatch(name)
        ]
    # Style may fetch, too, and spell that with escapes. What begins with <!
    # browsers end elsewhere than parsers do.
    found += re.findall(
        r"url\(|image-set\(|@import|expression\(|\\|<!",
        html.unescape(markup),
        re.IGNORECASE,
    )
    return found


@pytest.mark.parametrize(
    "markup",
    [
        "<script>alert(1)</script>",
        '<td onclick="alert(1)">1</td>',
        '<a href="javascript:alert(1)">1</a>',
        '<iframe src="https://example.org"></iframe>',
        '<img src="https://example.org/1.png">',
        '<svg><use href="data:image/svg+xml,x"/></svg>',
        "<style>td {background: url(https://example.org)}</style>",
        '<form action="https://example.org"></form>',
        r"<style>td {background: u\72l(https://example.org)}</style>",
        '<td style="background: u&#114;l(https://example.org)">1</td>',
        "<style>td {background: image-set('https://example.org')}</style>",
        "<style>td {background: URL(https://example.org)}</style>",
        "<!--><script>alert(1)</script>-->",
    ],
)
def test_what_a_stored_output_must_not_hold_is_seen(markup):
    assert faults(markup)


def test_a_player_with_other_script_is_none():
    with_player = next(
        data["text/html"]
        for path in paths()
        for data in stored(path)
        if is_player(data.get("text/html", ""))
    )
    for old, new in [
        ("let timer = null;", "let timer = fetch('https://example.org');"),
        ("</div>\n<script>", "</div>\n<script>alert(1)</script>\n<script>"),
        ("const captions = [", "const captions = [alert(1), "),
        ("data:image/webp;base64,", "https://example.org/"),
        ("</script>", "</script><script src='x'></script>"),
    ]:
        assert old in with_player
        assert not is_player(with_player.replace(old, new)), new


def stored(path):
    """List the stored outputs of a notebook, each by its kinds."""
    return [
        output.get("data", {})
        for cell in read(path).cells
        for output in cell.get("outputs", [])
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_run_no_script_but_the_players(path):
    for data in stored(path):
        assert {*data} <= {"text/plain", "text/html", "image/png"}
        markup = data.get("text/html", "")
        if not is_player(markup):
            assert faults(markup) == []


# No "=" in an address: within HTML, a browser takes it for an element, and
# what holds "=" for the element's attributes.
FOLDS = re.compile(r"</?(details|summary|sub|sup|br)>|<https://[\w./#-]+>")


def prose(notebook):
    """List a notebook's prose; a raw cell can be shown as HTML, too."""
    return [c.source for c in notebook.cells if c.cell_type != "code"]


def prose_faults(text):
    """List what prose must not hold, in code too.

    What is code there and what is not, each page decides for itself; so
    this does not ask.
    """
    found = [
        tag
        for tag in re.findall("<[a-z/!?][^>]*>?", text, re.IGNORECASE)
        if not FOLDS.fullmatch(tag)
    ]
    # Browsers pass over spaces in an address, Markdown over backslashes.
    plain = re.sub(r"[\s\\]", "", html.unescape(text))
    return found + re.findall(
        "javascript:|vbscript:|data:(?:application|image|text)/",
        plain,
        re.IGNORECASE,
    )


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "One stray ` here.\n\n<script>alert(1)</script>\n\nAnd ` there.",
        "```{raw} html\n<script>alert(1)</script>\n```",
        "<SVG onload=alert(1)>",
        "<img src=x onerror=alert(1) ",
        "<details open ontoggle=alert(1)>",
        "<details><https://x/onclick=alert(1)></details>",
        "[x](javascript:alert(1))",
        "[x](JavaScript:alert(1))",
        "[x](java&Tab;script:alert(1))",
        "[x](javascript&colon;alert(1))",
        r"[x](javascript\:alert(1))",
        "[x][y]\n\n[y]: javascript:alert(1)",
        "[x]: vbscript:x",
        "[x](data:text/html,x)",
    ],
)
def test_what_prose_must_not_hold_is_seen(text):
    assert prose_faults(text)


def test_prose_is_all_but_code():
    cells = [v4.new_markdown_cell("a"), v4.new_raw_cell("b")]
    notebook = v4.new_notebook(cells=[*cells, v4.new_code_cell("c")])
    assert prose(notebook) == ["a", "b"]


def test_prose_may_fold_and_point():
    assert not prose_faults(
        "<details>\n<summary>x<sup>2</sup></summary>\n\nAsk the data: is "
        "`a < b` in JavaScript?<br>See <https://example.org/a-b#c>, or "
        "[here](https://example.org/?a=b).\n</details>"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_prose_holds_no_script(path):
    """Jupyter, Colab and GitHub show HTML in prose; ours only folds."""
    for text in prose(read(path)):
        assert prose_faults(text) == []

"""The workflows can do what they say, and may do no more than they need.

actionlint looks at them in test.yml; it cannot be installed from PyPI alone.
"""

import ast
import os
import re
import subprocess
import tomllib

import pytest
import yaml

import healthgym_utils as hg
from healthgym_utils import data
from notebooks import ROOT, paths

FOLDER = ROOT / ".github" / "workflows"
PYTHONS = ["3.11", "3.12", "3.13"]
# Rights beyond reading the repository, each where it is needed.
RIGHTS = {
    ("publish", "deploy"): {"pages": "write", "id-token": "write"},
    ("monthly", "report"): {"issues": "write"},
}


class Loader(yaml.SafeLoader):
    """Take ``on`` for a word, as GitHub does, and not for true."""


Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag != "tag:yaml.org,2002:bool"
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load(path):
    return yaml.load(path.read_text(encoding="utf-8"), Loader)


WORKFLOWS = {path.stem: load(path) for path in FOLDER.glob("*.yml")}
JOBS = {
    (name, job): content
    for name, workflow in WORKFLOWS.items()
    for job, content in workflow["jobs"].items()
}
STEPS = [
    pytest.param(step, id=f"{name}-{job}-{number}")
    for (name, job), content in JOBS.items()
    for number, step in enumerate(content.get("steps", []))
]
RUNS = [step for step in STEPS if "run" in step.values[0]]
SNIPPETS = [
    pytest.param(snippet, id=step.id)
    for step in RUNS
    for snippet in re.findall(
        r"<<'PY'\n(.+?)^PY$", step.values[0]["run"], re.DOTALL | re.MULTILINE
    )
]


def shell(workflow, job, name):
    """Return what the step of a job runs whose name holds a word."""
    (step,) = (
        step
        for step in JOBS[workflow, job]["steps"]
        if name in step.get("name", "")
    )
    return step["run"]


def test_there_are_three_and_each_starts_when_it_should():
    assert {*WORKFLOWS} == {"test", "publish", "monthly"}
    starts = {name: content["on"] for name, content in WORKFLOWS.items()}
    assert {"pull_request", "workflow_call"} <= {*starts["test"]}
    assert starts["publish"]["push"] == {"branches": ["main"]}
    ((cron,),) = (entry.values() for entry in starts["monthly"]["schedule"])
    assert re.fullmatch(r"\d+ \d+ 1 \* \*", cron), "once a month"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_reads_and_does_not_pile_up(name):
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    assert WORKFLOWS[name]["concurrency"]["group"]


@pytest.mark.parametrize(("name", "job"), JOBS)
def test_a_job_has_the_rights_it_needs_and_an_end(name, job):
    content = JOBS[name, job]
    assert content.get("permissions") == RIGHTS.get((name, job))
    if "uses" in content:
        assert (ROOT / content["uses"]).is_file()
    else:
        assert 0 < content["timeout-minutes"] <= 60


@pytest.mark.parametrize("step", STEPS)
def test_actions_are_pinned_and_keep_no_token(step):
    """GitHub's own by version; anybody else's would be by commit."""
    action = step.get("uses")
    if action is None:
        return
    assert re.fullmatch(r"actions/[\w-]+@v\d+|.+@[0-9a-f]{40}", action)
    if action.startswith("actions/checkout@"):
        assert step["with"]["persist-credentials"] == "false"


@pytest.mark.parametrize("step", RUNS)
def test_shell_can_be_read(step):
    done = subprocess.run(
        ["bash", "-n"], input=step["run"], text=True, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    # Put into the text of a script, a value could be a command.
    assert "${{" not in step["run"]


@pytest.mark.parametrize("step", RUNS)
def test_shell_names_what_is_there(step):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    assert {*re.findall(r"\bmake ([a-z]+)", step["run"])} <= {*targets}
    named = r"(?<![\w/])(?:tests\S*|\.ci/\w+|requirements\S*|[\w-]+\.toml)"
    for path in re.findall(named, step["run"]):
        assert (ROOT / path.rstrip(";")).exists(), path


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_python_in_shell_uses_what_is_there(snippet):
    modules = {"hg": hg, "data": data}
    used = [
        (modules[node.value.id], node.attr)
        for node in ast.walk(ast.parse(snippet))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in modules
    ]
    assert used
    for module, name in used:
        assert hasattr(module, name)


TESTS = {
    ("test", "test"): ["bash .ci/run"],
    ("monthly", "newest"): [
        'pip install --upgrade --editable ".[book,test]"',
        'python -m pytest tests -n 2 -m "not slow"',
        "python -m pytest tests/notebooks/test_papermill.py -n 2",
    ],
    ("monthly", "oldest"): [
        """\
pip install uv==0.13.9
uv pip compile pyproject.toml --resolution lowest-direct \\
  --extra stream --quiet --output-file "$RUNNER_TEMP/oldest.txt"
uv pip install --system --editable ".[book,test]" \\
  --constraint "$RUNNER_TEMP/oldest.txt"
""",
        "python -m pytest tests/unit -n 2",
        "python -m pytest tests/notebooks/test_papermill.py -n 2",
    ],
    ("monthly", "repeat"): [
        "make notebooks\ngit add notebooks\nmake notebooks\n"
        "git diff --exit-code --stat notebooks\n"
    ],
    ("monthly", "claims"): ['make claims NAMES="$NAMES"'],
    ("monthly", "fuzz"): ["make fuzz FUZZ_SECONDS=600"],
}


@pytest.mark.parametrize("job", TESTS, ids=" ".join)
def test_what_is_to_be_tested_is_tested(job):
    """To the letter: nothing is left out, and no failure is waved through."""
    steps = [
        step
        for step in JOBS[job]["steps"]
        if {"run", "if"} & {*step} == {"run"}
    ]
    assert [step["run"] for step in steps] == TESTS[job]
    assert not any("continue-on-error" in step for step in steps)
    assert "continue-on-error" not in JOBS[job]


def test_all_notebooks_run_as_on_colab_and_its_list_is_compared():
    run = shell("monthly", "colab", "Every notebook")
    assert run.endswith("PYTHONPATH=tools python tests/notebooks/colab.py\n")
    assert "colab.py" in shell("monthly", "colab", "Colab has")


def test_claims_of_all_notebooks_are_measured():
    parts = JOBS["monthly", "claims"]["strategy"]["matrix"]["names"]
    names = [name for part in parts for name in part.split()]
    claims = (ROOT / "tests" / "notebooks" / "claims").glob("*.yaml")
    assert names == sorted(file.name[:2] for file in claims)


def test_all_pythons_are_tried():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={PYTHONS[0]}"
    for job in [("test", "test"), ("monthly", "newest")]:
        assert JOBS[job]["strategy"]["matrix"]["python"] == PYTHONS
        assert JOBS[job]["strategy"]["fail-fast"] == "false"


def test_the_book_goes_out_after_tests_with_its_own_address():
    assert JOBS["publish", "test"]["uses"].endswith("/test.yml")
    assert {*JOBS["publish", "deploy"]["needs"]} == {"test", "build"}
    steps = JOBS["publish", "build"]["steps"]
    order = [step["run"] for step in steps if "run" in step]
    assert order == ['make stamp REPO="$GITHUB_REPOSITORY"', "make book"]
    assert steps[-1]["with"]["path"] == "_build/html"


def test_any_failure_of_the_monthly_run_is_reported():
    others = {job for name, job in JOBS if name == "monthly"} - {"report"}
    report = JOBS["monthly", "report"]
    assert {*report["needs"]} == others
    assert report["if"] == (
        "${{ always() && (contains(needs.*.result, 'failure') || "
        "contains(needs.*.result, 'cancelled')) }}"
    )
    (step,) = report["steps"]
    for job in others:
        assert f"${{{{ needs.{job}.result }}}}" in step["env"]["RESULTS"]


@pytest.fixture
def run(tmp_path):
    """Return a function that runs a step's shell as GitHub does.

    The one command in it that reaches beyond this machine has a stand-in.
    """

    def start(script, command, stand_in, **variables):
        path = tmp_path / command
        path.write_text(f"#!/bin/sh\n{stand_in}\n")
        path.chmod(0o755)
        variables["PATH"] = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        variables["RUNNER_TEMP"] = str(tmp_path)
        return subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
        )

    return start


@pytest.mark.parametrize("number", ["", "7"])
def test_one_issue_is_open_at_a_time(run, number):
    done = run(
        shell("monthly", "report", "issue"),
        "gh",
        'if [ "$2" = list ]; then echo $NUMBER; else printf "%s\\n" "$@"; fi',
        NUMBER=number,
        RESULTS="newest: failure",
        RUN="https://example.org/1",
        TITLE="It fails",
    )
    about = ["comment", "7"] if number else ["create", "--title", "It fails"]
    body = "newest: failure. https://example.org/1 says why."
    assert done.stdout.splitlines() == ["issue", *about, "--body", body]
    assert done.returncode == 0


@pytest.mark.parametrize("fails", [False, True])
def test_all_notebooks_run_and_the_broken_one_is_named(run, fails):
    done = run(
        shell("monthly", "figshare", "Notebooks"),
        "papermill",
        'echo "ran $1"; case "$1" in *02_*) exit $FAILS;; esac',
        FAILS=str(int(fails)),
    )
    assert done.stdout.count("ran ") == len(paths())
    assert done.returncode == fails
    assert ("::error::" in done.stdout) == fails
    assert done.stdout.count("02_table") == 1 + fails


@pytest.mark.parametrize("broken", ["", "requirements.txt"])
def test_an_audit_looks_at_both_locks(run, broken):
    done = run(
        shell("monthly", "audit", "vulnerabilities"),
        "pipx",
        'for last; do :; done; echo "$last"; [ "$last" != "$BROKEN" ]',
        BROKEN=broken,
    )
    locks = ["requirements.txt", "requirements-workshop.txt"]
    assert done.stdout.split() == locks
    assert done.returncode == bool(broken)

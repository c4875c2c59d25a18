"""Measure what notebooks claim of random results, with several seeds.

python tools/claims.py [08 12 ...]      one file a notebook, behind make claims

A claim in prose is a sentence of one notebook, run with one seed. The files
``tests/notebooks/claims/*.yaml`` name such sentences, an expression that says
in a number what each one claims, and the band in which that number has to be.
This runs each notebook with several seeds, evaluates the expressions at its
end, and writes the numbers beside the claims; tests hold them to the bands.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path

import nbformat
import papermill
import yaml

from notebooks import NOTEBOOKS, ROOT, code_hash, paths, read

CLAIMS = ROOT / "tests" / "notebooks" / "claims"
SEEDS = (42, 1, 2)
MARK = "claims: "


def claims_of(path: Path) -> list[dict]:
    """Read what is claimed in a notebook: says, value and band of each."""
    return yaml.safe_load((CLAIMS / f"{path.stem}.yaml").read_text())


def measured(path: Path) -> Path:
    """Say where a notebook's measurements are kept."""
    return CLAIMS / f"{path.stem}.json"


def measure(path: Path, seed: int) -> dict[str, float]:
    """Run a notebook with a seed, and return the number of each claim."""
    notebook = read(path)
    pairs = [(claim["says"], claim["value"]) for claim in claims_of(path)]
    # Names that no notebook has: a claim reads the notebook's own.
    lines = ["import json as json_", "claimed_ = {}"]
    lines += [f"claimed_[{says!r}] = float({value})" for says, value in pairs]
    lines.append(f"print({MARK!r} + json_.dumps(claimed_))")
    notebook.cells.append(nbformat.v4.new_code_cell("\n".join(lines)))
    ran = papermill.execute_notebook(
        notebook,
        None,
        {"SEED": seed},
        cwd=NOTEBOOKS,
        kernel_name="python3",
        progress_bar=False,
    )
    said = "".join(o.get("text", "") for o in ran.cells[-1].outputs)
    return json.loads(said.partition(MARK)[2])


def write(path: Path) -> None:
    """Measure a notebook's claims with every seed, and keep the numbers."""
    record = {"code_sha256": code_hash(read(path)), "seeds": {}}
    for seed in SEEDS:
        record["seeds"][str(seed)] = {
            says: float(f"{value:.4g}")
            for says, value in measure(path, seed).items()
        }
    text = json.dumps(record, indent=1, ensure_ascii=False)
    measured(path).write_text(text + "\n")


def in_words(text: str) -> str:
    """Drop line breaks and marks of emphasis, which carry no claim."""
    return re.sub(r"\s+", " ", re.sub(r"[*_`]", "", text))


def problems(path: Path, record: dict) -> list[str]:
    """List the claims of a notebook that its measurements do not carry."""
    notebook = read(path)
    if record["code_sha256"] != code_hash(notebook):
        return ["measured with other code: make claims"]
    prose = in_words(
        " ".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    )
    found = []
    for claim in claims_of(path):
        says, (low, high) = claim["says"], claim["band"]
        if in_words(says) not in prose:
            found.append(f"the notebook does not say: {says}")
        for seed in SEEDS:
            value = record["seeds"].get(str(seed), {}).get(says)
            if value is None:
                found.append(f"seed {seed}: not measured: {says}")
            elif not low <= value <= high:
                found.append(
                    f"seed {seed}: {value:g} is not in {low:g} to "
                    f"{high:g}: {says}"
                )
    return found


def main() -> None:
    """Measure, say what is not in its band, and fail if anything is not."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help="such as 08 12")
    os.environ["TQDM_DISABLE"] = "1"
    missed = []
    for path in paths(parser.parse_args().names):
        if not (CLAIMS / f"{path.stem}.yaml").is_file():
            continue
        write(path)
        found = problems(path, json.loads(measured(path).read_text()))
        print(path.name, *(found or ["all in their bands"]), sep="\n  ")
        missed += [path.name] * bool(found)
    sys.exit(f"not carried: {', '.join(missed)}" if missed else 0)


if __name__ == "__main__":
    main()

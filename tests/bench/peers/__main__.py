"""`python -m tests.bench.peers`: 27 rows under tdsim, SPIN and Harmony in turn; one table, and whether the verdicts agree.

Every figure is a whole process: start-up, SPIN's compilation and Harmony's included. tdsim searches planted bugs with
`portfolio` up to the first finding, and proves correct variants with `states`. What is not installed is installed where that
can be done (SPIN and a C compiler by apt, Harmony into a virtual environment under out/), else named and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

from tests.bench.protocols import ROWS, Row

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
HARMONY = "harmony==1.2.4126"
APT = ["spin", "gcc", "libc6-dev", "time"]
NOT_QUICK = {"spin": 10, "harmony": 10}
"""With --quick a peer gets so many seconds for a row."""
HEADER = f"{'row':26}{'tool':9}{'verdict':9}{'states':>10}{'runs':>7}{'wall s':>9}{'MB':>7}{'first':>7}{'shrunk':>8}"


class Measured(NamedTuple):
    """What one tool said about one row; empty text where it says nothing."""

    tool: str
    verdict: str
    states: str = ""
    executions: str = ""
    wall_s: float = 0.0
    peak_mb: float = 0.0
    first: str = ""
    shrunk: str = ""

    def line(self, row: Row) -> str:
        """One line of the table."""
        return (
            f"{row!s:26}{self.tool:9}{self.verdict:9}{self.states:>10}{self.executions:>7}"
            f"{self.wall_s:9.2f}{self.peak_mb:7.0f}{self.first:>7}{self.shrunk:>8}"
        )


def tdsim(row: Row, strategy: str, runs: int, limit_s: float) -> Measured:
    """One row under tdsim; a planted bug is shrunk afterwards, outside what is measured."""
    command = [sys.executable, "-m", "tests.bench.peers.one", str(ROWS.index(row)), strategy]
    walls, peaks, out = [], [], ""
    for _ in range(max(runs, 1)):
        timed = ["/usr/bin/time", "-f", "%M", "-o", "/dev/stderr", *command]
        began_s = perf_counter()
        try:
            done = subprocess.run(
                timed, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=True
            )
        except subprocess.TimeoutExpired:
            return Measured("tdsim", "limit", wall_s=limit_s)
        walls.append(perf_counter() - began_s)
        peaks.append(int(done.stderr.split()[-1]) / 1024)
        out = done.stdout
    result = json.loads(out)
    shrunk = ""
    if result["first"] is not None:
        again = json.loads(
            subprocess.run([*command, "shrink"], cwd=ROOT, capture_output=True, check=True).stdout
        )
        shrunk = str(again["shrunk"])
    states = re.search(r"states: all (\d+) states", result["claim"])
    return Measured(
        "tdsim",
        result["verdict"],
        states[1] if states else "",
        str(result["executions"]) if not states else "",
        median(walls),
        median(peaks),
        str(result["first"] or ""),
        shrunk,
    )


def peer(tool: str, row: Row, runs: int, limit_s: float, path: str) -> Measured:
    """One row by the peer's own script, which prints a line of medians."""
    extra = "-" if row.model == "m1" else f"A={row.accesses}"
    chk = "-" if row.model == "m1" else str(row.chk)
    only = f"{row.model} {row.n} {extra} {row.bug} {chk}$"
    environment = {
        "ONLY": only,
        "RUNS": str(runs if runs > 1 else 0),
        "LIMIT": str(int(limit_s)),
        "PATH": path,
    }
    script = ["bash", str(HERE / f"run_{tool}.sh")]
    done = subprocess.run(script, env=os.environ | environment, capture_output=True, text=True, check=False)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    if len(lines) < 2:
        return Measured(tool, "no answer", wall_s=limit_s)
    said = dict(zip(lines[0], lines[1], strict=False))
    verdict = {"issue": "fail", "deadlock": "fail", "unknown": "limit"}.get(said["verdict"], said["verdict"])
    first = said["depth"] if verdict == "fail" and tool == "spin" else ""
    wall_s = int(said["wall_ms"]) / 1000
    return Measured(tool, verdict, said["states"], "", wall_s, int(said["peak_kB"] or 0) / 1024, first)


def ready_spin() -> str | None:
    """What is missing for SPIN, after an attempt to install it."""
    wanted = ["spin", "gcc", "/usr/bin/time"]
    if all(map(shutil.which, wanted)):
        return None
    if shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(
            ["apt-get", "install", "-y", "--no-install-recommends", *APT], capture_output=True, check=False
        )
    missing = [name for name in wanted if not shutil.which(name)]
    return (
        f"SPIN is left out, missing: {', '.join(missing)} (apt-get install {' '.join(APT)})"
        if missing
        else None
    )


def ready_harmony(folder: Path) -> str | None:
    """What is missing for Harmony, after an attempt to install it into `folder`."""
    if shutil.which("harmony") or (folder / "bin" / "harmony").exists():
        return None
    made = subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, check=False)
    if made.returncode == 0:
        pip = [str(folder / "bin" / "pip"), "install", "--quiet", HARMONY]
        made = subprocess.run(pip, capture_output=True, check=False, text=True)
    if made.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        return f"Harmony is left out: pip install {HARMONY} failed"
    return None


def main() -> int:
    """Print the table; 1 if two tools disagree on a row."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="ten seconds a row for the peers, and no repetition"
    )
    parser.add_argument(
        "--limit", type=float, default=900, metavar="S", help="seconds a row and tool (default 900)"
    )
    parser.add_argument(
        "--runs", type=int, default=1, metavar="N", help="repetitions of each row; medians are printed"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="rows that begin with this, say `m2 N=3`")
    parser.add_argument(
        "--tools", default="tdsim,spin,harmony", metavar="A,B", help="which tools (default all)"
    )
    parser.add_argument(
        "--engine", default="states", help="how tdsim proves the correct variants (default states)"
    )
    parser.add_argument(
        "--hunter", default="portfolio", help="how tdsim finds planted bugs (default portfolio)"
    )
    options = parser.parse_args()
    folder = ROOT / "out" / "peers-harmony"
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    tools = options.tools.split(",")
    for tool, problem in (
        ("spin", ready_spin() if "spin" in tools else None),
        ("harmony", ready_harmony(folder) if "harmony" in tools else None),
    ):
        if problem is not None:
            print(problem)
            tools.remove(tool)
    print(HEADER)
    disagreements = silent = 0
    for row in [row for row in ROWS if str(row).startswith(options.only)]:
        verdicts = set()
        for tool in tools:
            if tool == "tdsim":
                strategy = options.hunter if row.bug else options.engine
                said = tdsim(row, strategy, options.runs, options.limit)
            else:
                limit_s = min(options.limit, NOT_QUICK[tool]) if options.quick else options.limit
                said = peer(tool, row, 1 if options.quick else options.runs, limit_s, path)
            print(said.line(row), flush=True)
            if said.verdict in {"ok", "fail"}:
                verdicts.add(said.verdict)
            else:
                silent += 1
        expected = {"fail" if row.bug else "ok"}
        if verdicts - expected:
            disagreements += 1
            print(f"{row!s:26}DISAGREE: expected {expected.pop()}")
    print("all verdicts agree" if not disagreements else f"{disagreements} rows disagree", end="")
    print(f"; {silent} times a tool gave none within its limit" if silent else "")
    return 1 if disagreements else 0


if __name__ == "__main__":
    sys.exit(main())

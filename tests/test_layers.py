"""Each package imports only packages to its left: sim <- vcpu <- mmu <- tdx <- scenarios; tests sees all."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("sim", "vcpu", "mmu", "tdx", "scenarios")
MODULE_SIDE = {"sim", "vcpu.addresses", "tdx.module"}
"""What Intel's side may import of ours, besides what lies outside the project."""


def imported_names(tree: ast.AST, package: str) -> list[tuple[int, str]]:
    """(line, dotted name) of each import, also inside functions; `package` is the importing file's own."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                found.append((node.lineno, node.args[0].value))
    return found


def is_below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def offences(source: str, path: str) -> list[str]:
    """One line `file:line: what` for each import that the layers forbid. `path` is relative to the root."""
    package = ".".join(Path(path).parent.parts)
    own = package.partition(".")[0]
    allowed = LAYERS[: LAYERS.index(own) + 1]
    is_module_side = is_below(package, "tdx.module")
    found = []
    for line, name in imported_names(ast.parse(source, path), package):
        top = name.partition(".")[0]
        if top == "tests" or (top in LAYERS and top not in allowed):
            found.append(f"{path}:{line}: {own} must not import {name}")
        elif is_module_side and top in LAYERS and not any(is_below(name, prefix) for prefix in MODULE_SIDE):
            found.append(f"{path}:{line}: tdx.module may import sim and vcpu.addresses, not {name}")
    return found


def test_every_import_points_to_the_left() -> None:
    found = []
    for layer in LAYERS:
        for path in sorted((ROOT / layer).rglob("*.py")):
            found += offences(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    assert not found, "\n".join(found)


def test_there_is_no_other_top_level_package() -> None:
    packages = {
        path.parent.name
        for pattern in ("*/__init__.py", "*/*.py")
        for path in ROOT.glob(pattern)
        if not path.parent.name.startswith(".")
    }
    assert packages <= {*LAYERS, "tests"}


def test_there_is_no_module_at_the_root() -> None:
    assert [path.name for path in ROOT.glob("*.py")] == []


@pytest.mark.parametrize(
    ("path", "source", "line"),
    [
        ("sim/kernel.py", "import vcpu", 1),
        ("sim/strategies/pct.py", "def f():\n    from mmu.spte import Spte", 2),
        ("vcpu/tlb.py", "from mmu import spte", 1),
        ("mmu/fault.py", "import tdx.kvm.hooks as h", 1),
        ("tdx/kvm/hooks.py", "from scenarios.build import build", 1),
        ("tdx/module/sept.py", "from mmu.spte import Spte", 1),
        ("tdx/module/sept.py", "from vcpu.tlb import Tlb", 1),
        ("tdx/module/sept.py", "from vcpu import tlb", 1),
        ("tdx/module/leaves/aug.py", "from tdx.kvm import hooks", 1),
        ("tdx/module/leaves/aug.py", "from ...kvm import hooks", 1),
        ("scenarios/run.py", "import tests.worlds", 1),
        ("sim/kernel.py", "import importlib\nimportlib.import_module('tdx.module')", 2),
    ],
)
def test_an_import_to_the_right_is_reported_with_its_line(path: str, source: str, line: int) -> None:
    (offence,) = offences(source, path)
    assert offence.startswith(f"{path}:{line}: ")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("sim/kernel.py", "import simpy\nfrom sim.locks import Mutex"),
        ("tdx/module/sept.py", "from vcpu.addresses import Gpa\nfrom vcpu import addresses\nimport sim"),
        ("tdx/module/leaves/aug.py", "from tdx.module.sept import walk\nimport enum"),
        ("tdx/kvm/hooks.py", "from tdx.module import seamcall\nfrom mmu.spte import Spte"),
        ("scenarios/run.py", "import sim, vcpu, mmu, tdx"),
    ],
)
def test_an_import_to_the_left_is_fine(path: str, source: str) -> None:
    assert offences(source, path) == []

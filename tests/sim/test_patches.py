"""Patches: functions replaced for one world, wherever they were imported, and put back."""

from __future__ import annotations

import pytest

from mmu import fault, invalidate
from mmu.invalidate import mmu_invalidate_retry_gfn
from sim import BadPatch, replaces
from sim.patches import applied, read

GOOD = """
from mmu import invalidate
from sim import replaces

@replaces(invalidate.mmu_invalidate_retry_gfn)
def never(kvm, mmu_seq, gfn=3):
    return ("patched", gfn)
    yield
"""


def result_of(steps):
    """What a generator without steps returns."""
    with pytest.raises(StopIteration) as stop:
        next(steps)
    return stop.value.value


@pytest.fixture
def patch(tmp_path):
    """Write a patch file."""

    def write(source):
        path = tmp_path / "patch.py"
        path.write_text(source)
        return path

    return write


def test_a_replaced_function_is_used_wherever_it_was_imported(patch):
    """Through its module, through another module, and under a name imported long ago."""
    with applied(read(patch(GOOD))):
        for name in (
            invalidate.mmu_invalidate_retry_gfn,
            fault.invalidate.mmu_invalidate_retry_gfn,
            mmu_invalidate_retry_gfn,
        ):
            assert result_of(name(None, 0)) == ("patched", 3)
            assert result_of(name(None, 0, gfn=9)) == ("patched", 9)


def test_a_patch_leaves_no_trace(patch):
    """Code, defaults and dictionary are as before, also after an exception."""
    function = mmu_invalidate_retry_gfn
    before = (function.__code__, function.__defaults__, function.__kwdefaults__, dict(function.__dict__))
    with pytest.raises(KeyError), applied(read(patch(GOOD))):  # noqa: PT012 - the block is what is tested
        assert function.__code__ is not before[0]
        raise KeyError

    assert before == (
        function.__code__, function.__defaults__, function.__kwdefaults__, dict(function.__dict__)
    )  # fmt: skip


def test_a_method_can_be_replaced(patch):
    """`self` is its first argument."""
    source = """
from sim.locks import Lock
from sim import replaces

@replaces(Lock.holders)
def holders(self):
    return [self.name]
"""
    from sim import Kernel

    lock = Kernel().spinlock("l")
    with applied(read(patch(source))):
        assert lock.holders() == ["l"]
    assert lock.holders() == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "replaces nothing: decorate a function with @replaces(module.function)"),
        ("from sim import replaces\n@replaces(3)\ndef f(): ...", "wants a function of the model, not 3"),
        ("from mmu import invalidate\ninvalidate.nonsense", "AttributeError: module 'mmu.invalidate' has no"),
        ("def f(:", "SyntaxError: "),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_a_bad_patch_is_told(patch, source, message):
    """The message starts with the file."""
    path = patch(source)
    with pytest.raises(BadPatch) as told:
        read(path)

    assert str(told.value).startswith(f"{path}: ")
    assert message in str(told.value)


def test_a_patch_that_is_not_there_is_told(tmp_path):
    """Not a traceback."""
    with pytest.raises(BadPatch, match=r"absent\.py: cannot be read: No such file"):
        read(tmp_path / "absent.py")


def test_replaces_outside_a_patch_is_refused():
    """The model has no business with it."""
    with pytest.raises(BadPatch, match="only works in a file given as a patch"):
        replaces(mmu_invalidate_retry_gfn)(lambda: None)


def test_a_function_that_its_module_does_not_hold_cannot_be_replaced(patch):
    """A function made inside another one has no place that could be redirected."""
    source = """
from sim import replaces

def maker():
    def made(): ...
    return made

@replaces(maker())
def stand_in(): ...
"""
    replacements = read(patch(source.replace("def maker", "import sim.schedule\n\ndef maker", 1)))
    replacements[0].original.__module__ = "sim.schedule"
    replacements[0].original.__qualname__ = "text.<locals>.made"
    with pytest.raises(BadPatch, match="is not what its module calls by that name"), applied(replacements):
        pass

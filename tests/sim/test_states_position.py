"""Positions are exact: what may matter tells two apart, what cannot does not."""

from __future__ import annotations

import pytest

from sim.states.liveness import live_after
from sim.states.position import Opaque, Walk, globals_written, readable


def position(generator):
    return Walk({}).of(generator)


def advanced(steps, *values):
    generator = steps()
    next(generator)
    for value in values:
        generator.send(value)
    return generator


def test_this_interpreter_shows_the_value_stack():
    assert readable()


def test_left_side_of_a_sum_is_part_of_a_position():
    def steps():
        yield (yield) + (yield)

    assert position(advanced(steps, 1)) != position(advanced(steps, 2))
    assert position(advanced(steps, 1)) == position(advanced(steps, 1))


def test_iterator_of_a_loop_is_part_of_a_position():
    def steps():
        for _ in "aa":
            yield

    assert position(advanced(steps)) != position(advanced(steps, None))


def test_variable_that_is_not_read_again_is_not():
    def steps():
        old = yield
        if old:
            yield
        yield

    assert position(advanced(steps, 1)) == position(advanced(steps, 2))


def test_variable_of_an_outer_generator_counts():
    def inner():
        yield

    def steps():
        kept = yield
        yield from inner()
        yield kept

    assert position(advanced(steps, 1)) != position(advanced(steps, 2))


def test_one_list_twice_differs_from_two_equal_lists():
    one: list[int] = []

    assert Walk({}).of((one, one)) != Walk({}).of((one, []))


def test_true_is_not_one():
    assert Walk({}).of(True) != Walk({}).of(1)


def test_handler_keeps_a_variable_alive():
    """Control may leave a `try` anywhere."""

    def steps():
        kept = yield
        try:
            yield
        except ValueError:
            yield kept

    generator = advanced(steps, 1)

    assert "kept" in live_after(steps.__code__)[generator.gi_frame.f_lasti]


def test_file_cannot_be_read(tmp_path):
    with (tmp_path / "x").open("w") as file, pytest.raises(Opaque, match="TextIOWrapper"):
        Walk({}).of(file)


def test_assigned_global_is_named():
    code = compile("def f():\n global counter\n counter = 1", "", "exec").co_consts[0]

    assert globals_written(code) == "counter"

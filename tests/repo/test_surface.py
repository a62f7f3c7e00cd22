"""The public surface is what the lists say: names that exist, errors that are all drawn in the tree."""

from __future__ import annotations

import inspect
import re

import pytest

import swarmnode
from swarmnode import errors


def test_every_public_name_resolves() -> None:
    for name in swarmnode.__all__:
        assert getattr(swarmnode, name) is not None
    assert dir(swarmnode) == sorted(swarmnode.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        swarmnode.nonsense  # noqa: B018


def test_the_error_tree_is_drawn_as_it_is() -> None:
    classes = {name: cls for name, cls in vars(errors).items() if inspect.isclass(cls)}
    assert sorted(classes) == sorted(errors.__all__)
    drawing = errors.__doc__ or ""
    lines = re.finditer(r"^([ │├└─]+)([A-Z]\w+)", drawing, re.MULTILINE)
    depths = {line[2]: len(line[1]) for line in lines}
    assert set(depths) == set(classes)
    for name, cls in classes.items():
        assert issubclass(cls, errors.SwarmnodeError)
        assert depths[name] == 4 * len([c for c in cls.__mro__ if c in classes.values()])


def test_codes_are_unique_and_exit_codes_say_who_is_at_fault() -> None:
    classes = [getattr(errors, name) for name in errors.__all__]
    assert len({cls.code for cls in classes}) == len(classes)
    for cls in classes:
        assert cls.exit_code > 0
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", cls.code)


def test_an_error_carries_what_it_is_about() -> None:
    error = errors.PeerLost("The peer is gone.", hint="Try again.", peer="12D3KooX", span=(0, 10))
    assert str(error) == error.message == "The peer is gone."
    assert (error.hint, error.peer, error.span, error.exit_code) == ("Try again.", "12D3KooX", (0, 10), 5)

"""Module calls in progress, and when calls are recorded."""

from __future__ import annotations

import threading

import pytest
from torch import nn

from fxprune.tracing.scopes import Scopes, Switch


def test_calls_are_recorded_until_the_end_but_for_pauses_and_other_threads() -> None:
    switch, elsewhere = Switch(), []
    assert switch.on
    with switch.paused(), switch.paused():
        assert not switch.on
        assert switch.active
    assert switch.on
    thread = threading.Thread(target=lambda: elsewhere.append(switch.on))
    thread.start()
    thread.join()
    assert elsewhere == [False]
    switch.end()
    assert not switch.on
    assert not switch.active


def test_a_pause_ends_with_an_error() -> None:
    switch = Switch()
    with pytest.raises(ValueError, match="in a leaf"), switch.paused():
        raise ValueError("in a leaf")
    assert switch.on


def test_the_calls_of_a_module_are_counted() -> None:
    model = nn.Sequential(nn.Sequential(nn.ReLU()))
    scopes = Scopes(model)
    assert (scopes.current, scopes.described) == (("", 0), "the model itself")
    seen = []
    for _ in range(2):
        with scopes.new_call("0"), scopes.new_call("0.0"):
            seen.append((scopes.current, scopes.described))
    assert seen == [(("0.0", 0), "`0.0`"), (("0.0", 1), "`0.0`")]
    with scopes.within(("0", 1)):
        assert scopes.current == ("0", 1)
    assert scopes.current == ("", 0)
    assert [scopes.path_of(module) for module in (model, model[0], nn.ReLU())] == ["", "0", None]


def test_the_innermost_module_that_fails_is_known() -> None:
    scopes = Scopes(nn.Sequential(nn.Sequential(nn.ReLU())))
    with pytest.raises(ValueError, match="inside"), scopes.new_call("0"), scopes.new_call("0.0"):
        raise ValueError("inside")
    assert scopes.failed_in == "0.0"
    assert scopes.current == ("", 0)

"""Stop strings end the text wherever the pieces break them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarmnode.models.stopping import StopStrings

LETTERS = st.text(alphabet="ab\n", max_size=40)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3)


def expected(text: str, stop: list[str]) -> str:
    """The text before the first place where any stop string begins."""
    places = [at for one in stop if (at := text.find(one)) >= 0]
    return text[: min(places)] if places else text


@given(pieces=st.lists(st.text(alphabet="ab\n", max_size=4), max_size=20), stop=STOPS)
def test_text_ends_before_the_stop_string(pieces: list[str], stop: list[str]) -> None:
    watch = StopStrings(stop)
    shown = ""
    seen = ""
    for piece in pieces:
        seen += piece
        shown += watch.push(piece)
        # Nothing shown is taken back, whatever comes.
        assert expected(seen, stop).startswith(shown)
        if watch.found is not None:
            break
    if watch.found is None:
        shown += watch.finish()
        assert shown == "".join(pieces)
        assert not any(one in shown for one in stop)
    else:
        assert shown == expected(seen, stop)
        assert watch.found in stop
        assert watch.push("more") == ""
        assert watch.finish() == ""


def test_holds_back_only_what_may_become_a_stop_string() -> None:
    watch = StopStrings(["\nUser:"])
    assert watch.push("Hi\n") == "Hi"
    assert watch.push("Us") == ""
    assert watch.push("eful") == "\nUseful"
    assert watch.push(" end\nUser: x") == " end"
    assert watch.found == "\nUser:"


def test_without_stop_strings_everything_passes_at_once() -> None:
    watch = StopStrings(())
    assert watch.push("abc") == "abc"
    assert watch.finish() == ""

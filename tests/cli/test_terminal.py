"""On a terminal: bars that move and go away, colour unless refused, and nothing that steers it from afar."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios

import pytest

SCRIPT = """
from swarmnode.node.cli.events import Failed, Progress, Token
from swarmnode.node.cli.people import PeopleVoice

voice = PeopleVoice(quiet=False)
for done in range(3):
    for name in ("one", "two"):
        voice.say(Progress("load", name, done, 2, "blocks"))
voice.note("between")
voice.say(Progress("download", "three", 1, 9, "bytes"))
voice.close()
voice.say(Token(1, "an answer\\x1b[2J\\x9b2J"))
voice.say(Failed("no-peers", "Nobody.", "Wait."))
"""


def on_a_terminal(**environ: str) -> str:
    """What a terminal 100 columns wide gets to see."""
    person, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    env = {**{name: value for name, value in os.environ.items() if name != "NO_COLOR"}, "TERM": "xterm", **environ}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=terminal, stderr=terminal, env=env)
    os.close(terminal)
    shown = b""
    try:
        while chunk := os.read(person, 65536):
            shown += chunk
    except OSError:
        pass  # how Linux says that the other end of a terminal is closed
    os.close(person)
    assert process.wait() == 0
    return shown.decode()


def test_bars_move_and_leave_one_line_each() -> None:
    shown = on_a_terminal()
    assert "loading one:   0%|" in shown
    assert "loading two:   0%|" in shown
    assert "downloading three:   0%|" in shown
    lines = [line.rpartition("\r")[2].strip() for line in shown.replace("\r\n", "\n").split("\n")]
    assert any(line.endswith("loaded one") for line in lines)
    assert any(line.endswith("loaded two") for line in lines)
    assert "between" in shown


def test_no_peer_steers_the_terminal() -> None:
    shown = on_a_terminal()
    assert "an answer[2J2J" in shown
    assert "\x1b[2J" not in shown
    assert "\x9b" not in shown


@pytest.mark.parametrize("refusal", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "dumb"])
def test_colour_is_for_those_who_want_it(refusal: dict[str, str]) -> None:
    assert "\x1b[31mswarmnode: Nobody.\x1b[0m" in on_a_terminal()
    refused = on_a_terminal(**refusal)
    assert "swarmnode: Nobody." in refused
    assert "\x1b[31m" not in refused

"""Lines of standard input, awaited: pipes, files and terminals."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from swarmnode.errors import BadInput
from swarmnode.node.cli import generate, lines
from swarmnode.node.cli.lines import InputLines


async def every_line(source: InputLines) -> list[str]:
    found = []
    while (line := await source.next()) is not None:
        found.append(line)
    return found


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"one", ["one"]),
        (b"one\n", ["one"]),
        (b"one\r\n\ntwo", ["one", "", "two"]),
        ("über\n".encode(), ["über"]),
        (b"\xff\n", ["\ufffd"]),
    ],
)
async def test_lines_of_a_file_and_of_a_pipe(data: bytes, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(data)
    with (tmp_path / "lines").open("rb") as file:
        assert await every_line(InputLines(file.fileno())) == expected
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    assert await every_line(InputLines(reader)) == expected
    os.close(reader)


async def test_waiting_for_a_line_lets_the_others_run() -> None:
    reader, writer = os.pipe()
    async with trio.open_nursery() as nursery:

        async def write_late() -> None:
            await trio.testing.wait_all_tasks_blocked()
            os.write(writer, b"half a ")
            await trio.testing.wait_all_tasks_blocked()
            os.write(writer, b"line\n")

        nursery.start_soon(write_late)
        assert await InputLines(reader).next() == "half a line"
    os.close(reader)
    os.close(writer)


async def test_waiting_can_be_cancelled() -> None:
    reader, writer = os.pipe()
    with trio.CancelScope() as scope:
        scope.cancel()
        await InputLines(reader).next()
    assert scope.cancelled_caught
    os.close(reader)
    os.close(writer)


async def test_a_line_without_end_is_cut(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 10)
    monkeypatch.setattr(lines, "READ_BYTES", 10)
    (tmp_path / "endless").write_bytes(b"x" * 25)
    with (tmp_path / "endless").open("rb") as file:
        assert await every_line(InputLines(file.fileno())) == ["x" * 10, "x" * 10, "x" * 5]


async def test_a_terminal_is_prompted_and_edits_its_own_line(capsys: pytest.CaptureFixture[str]) -> None:
    person, program = os.openpty()
    source = InputLines(program)
    assert source.from_terminal
    os.write(person, b"helo\x7flo\n\x04")  # the terminal itself takes the o back
    assert await source.next("> ") == "hello"
    assert await source.next("> ") is None  # Ctrl-D
    assert capsys.readouterr().err == "> > "
    os.close(person)
    os.close(program)


def test_a_prompt_from_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "prompt").write_text("from a file\nof two lines\n", encoding="utf-8")
    with (tmp_path / "prompt").open(encoding="utf-8") as file:
        monkeypatch.setattr("sys.stdin", file)
        assert generate.read_prompt("-") == "from a file\nof two lines\n"


@pytest.mark.parametrize(
    ("given", "data", "message"),
    [
        (None, b"", "No prompt was given."),
        ("", b"", "The prompt is empty."),
        ("-", b"", "The prompt is empty."),
        ("-", b"\xff\xff", "Standard input is not UTF-8 text."),
    ],
)
def test_a_prompt_that_makes_no_sense(
    given: str | None, data: bytes, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "prompt").write_bytes(data)
    with (tmp_path / "prompt").open(encoding="utf-8") as file:
        monkeypatch.setattr("sys.stdin", file)
        with pytest.raises(BadInput) as caught:
            generate.read_prompt(given)
    assert caught.value.message == message
    assert caught.value.hint


def test_a_prompt_beyond_all_measure_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "MAX_PROMPT_CHARACTERS", 10)
    with pytest.raises(BadInput, match="more than 10 characters"):
        generate.read_prompt("x" * 11)

"""What people and programs are shown: tables, bars, errors, colour."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import get_type_hints

import pytest

from swarmnode.errors import BlocksMissing, NoPeers, PeerLost
from swarmnode.node.cli.blame import BROKEN_PIPE_EXIT, INTERNAL_EXIT, blame
from swarmnode.node.cli.events import (
    Chosen,
    Done,
    Event,
    Failed,
    Hop,
    Joined,
    Listening,
    ModelName,
    ModelStatus,
    Progress,
    Ready,
    Route,
    ServerStatus,
    Status,
    Token,
    json_line,
)
from swarmnode.node.cli.people import PeopleVoice
from swarmnode.node.cli.tables import coverage, status_table
from swarmnode.node.cli.voice import JsonVoice, Voice

PEER = "12D3KooWBmAwcd4PJNJvfV89HwE48nwkRmAgo8Vy3uQEyNNHBox2"
NAME = ModelName("org/model", "0123456789abcdef", "00" * 32)


class Plain:
    """A paint that paints nothing."""

    def __call__(self, style: str, text: str) -> str:
        return text


def server(start: int, end: int, *, state: str = "online", confirmed: bool = True, peer: str = PEER) -> ServerStatus:
    return ServerStatus(
        peer_id=peer,
        blocks=(start, end),
        state=state,
        confirmed=confirmed,
        dtype="float32",
        cache_tokens_left=65536,
        decode_tokens_per_second=12.34,
        prefill_tokens_per_second=456.7,
        public_name="ann",
        addrs=(),
    )


def model(num_blocks: int, *servers: ServerStatus, gaps: tuple[tuple[int, int], ...] = ()) -> ModelStatus:
    return ModelStatus(NAME, num_blocks, not gaps, gaps, servers)


def test_the_coverage_bar_shows_nobody_one_and_several() -> None:
    assert coverage(model(6, server(0, 4), server(2, 4))) == "▒▒██··"


def test_the_coverage_bar_counts_only_who_answers_and_is_online() -> None:
    absent = [server(0, 2, state="joining"), server(0, 2, state="draining"), server(0, 2, confirmed=False)]
    assert coverage(model(2, *absent)) == "··"


def test_a_narrow_bar_shows_the_worst_block_of_each_cell() -> None:
    assert coverage(model(126, server(0, 62), server(0, 126), server(63, 126)), width=3) == "█▒█"
    assert coverage(model(4, server(0, 3)), width=2) == "▒·"


def test_the_status_names_gaps_and_servers() -> None:
    status = Status(PEER, 2, (model(30, server(0, 10), server(20, 30, confirmed=False), gaps=((10, 30),)),))
    table = status_table(status, Plain())  # type: ignore[arg-type]
    assert "org/model  revision 0123456789ab, 30 blocks: nobody serves 10:30" in table
    assert "…NHBox2  0:10" in table
    assert "online, no answer" in table
    assert "12.3" in table
    assert "457" in table


def test_the_status_says_which_adapters_are_where() -> None:
    with_one = [replace(server(0, 2, peer=peer), adapters=("poet@1a2b3c4d",)) for peer in (PEER, "12D3KooWother9")]
    table = status_table(Status(PEER, 3, (model(4, *with_one, server(2, 4)),)), Plain())  # type: ignore[arg-type]
    assert "adapter poet@1a2b3c4d on …NHBox2, …other9" in table


def test_the_status_of_an_empty_swarm_is_a_sentence() -> None:
    assert status_table(Status(PEER, 1, ()), Plain()) == "1 peer connected, and nobody serves a model."  # type: ignore[arg-type]


def test_what_came_from_a_peer_cannot_steer_the_terminal() -> None:
    rude = ServerStatus(
        **{**{f: getattr(server(0, 1), f) for f in get_type_hints(ServerStatus)}, "public_name": "\x1b[2Jx"}
    )
    table = status_table(Status(PEER, 1, (model(1, rude),)), Plain())  # type: ignore[arg-type]
    assert "\x1b" not in table
    assert "[2Jx" in table


def answer(voice: Voice) -> None:
    hops = (Hop(PEER, (0, 15)), Hop("12D3KooWother9", (15, 30)))
    voice.say(Route(hops))
    for number, text in enumerate(("Héllo", "", " there")):
        voice.say(Token(number, text))
    voice.say(Done((0, 1, 2), "Héllo there", "length", 0.5, 20.0, 0.0031, hops))


def test_people_get_the_answer_alone_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    answer(PeopleVoice(quiet=False))
    shown = capsys.readouterr()
    assert shown.out == "Héllo there\n"
    assert shown.err == (
        "route: …NHBox2 0:15 → …other9 15:30\n"
        "3 tokens, 0.50 s to the first, 20.0 tokens/s, 3.1 ms a hop beyond computing (length)\n"
    )


def test_quiet_people_get_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    voice = PeopleVoice(quiet=True)
    voice.note("a note")
    voice.say(Progress("load", "blocks", 1, 1, "blocks"))
    answer(voice)
    assert capsys.readouterr() == ("Héllo there\n", "")


def test_a_choice_of_blocks_is_told_with_its_reason_and_its_memory(capsys: pytest.CaptureFixture[str]) -> None:
    voice = PeopleVoice(quiet=False)
    sizes = {"weights_bytes": 2 << 30, "cache_bytes": 1 << 30, "work_bytes": 512 << 20, "whole_bytes": 9 << 30}
    for why, servers, end, limit in (("gap", 1, 12, 4 << 30), ("thin", 3, 12, None), ("all", 0, 30, 10 << 30)):
        voice.say(Chosen((0, end), 30, why, servers, **sizes, limit_bytes=limit, cache_tokens=16384))  # type: ignore[arg-type]
    memory = "2.0 GiB of weights, 1.0 GiB for a cache of 16384 tokens, 512 MiB to work in"
    assert capsys.readouterr().err.splitlines() == [
        "blocks 0:12 of 30: some of them are held by nobody else (1 other server of this model)",
        f"  up to 3.5 GiB of 4.0 GiB of memory: {memory}; all 30 would need 9.0 GiB",
        "blocks 0:12 of 30: there the swarm is slowest (3 other servers of this model)",
        f"  up to 3.5 GiB of memory: {memory}; all 30 would need 9.0 GiB",
        "blocks 0:30 of 30: all of them fit",
        f"  up to 3.5 GiB of 10.0 GiB of memory: {memory}",
    ]


def test_programs_get_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    voice = JsonVoice(quiet=False)
    voice.note("for people only")
    answer(voice)
    shown = capsys.readouterr()
    events = [json.loads(line) for line in shown.out.splitlines()]
    assert [event["event"] for event in events] == ["route", "token", "token", "token", "done"]
    assert "".join(event["text"] for event in events if event["event"] == "token") == events[-1]["text"]
    assert events[0]["hops"][0] == {"peer_id": PEER, "blocks": [0, 15]}
    assert shown.out.isascii()
    assert shown.err == ""


def test_a_flood_of_progress_reaches_programs_as_a_trickle_with_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    voice = JsonVoice(quiet=False)
    for done in range(10_001):
        voice.say(Progress("download", "weights", done, 10_000, "bytes"))
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[0]["done"] == 0
    assert events[-1]["done"] == events[-1]["total"] == 10_000
    assert len(events) < 1000


def test_progress_without_a_terminal_is_two_lines_a_piece_of_work(capsys: pytest.CaptureFixture[str]) -> None:
    voice = PeopleVoice(quiet=False)
    for done in range(5):
        voice.say(Progress("load", "blocks 0:4", done, 4, "blocks"))
    voice.say(Progress("download", "config", 1, None, "bytes"))
    voice.close()
    shown = capsys.readouterr()
    assert shown.err == "loading blocks 0:4 …\nloaded blocks 0:4\ndownloading config …\n"
    assert shown.out == ""


def test_lines_of_many_threads_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    voice = JsonVoice(quiet=False)

    def speak() -> None:
        for _ in range(50):
            voice.say(Token(1, "x" * 500))

    threads = [threading.Thread(target=speak) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 200
    assert all(json.loads(line)["event"] == "token" for line in lines)


def test_an_error_is_a_sentence_and_what_to_do_next(capsys: pytest.CaptureFixture[str]) -> None:
    voice = PeopleVoice(quiet=True)
    voice.say(Token(1, "half an ans"))
    voice.say(Failed("peer-lost", "The peer is gone.", "Ask again."))
    shown = capsys.readouterr()
    assert shown.out == "half an ans\n"
    assert shown.err == "swarmnode: The peer is gone.\n  Ask again.\n"


def test_readiness_is_told_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    voice = PeopleVoice(quiet=False)
    events: list[Event] = [
        Listening(PEER, ("/ip4/10.0.0.1/tcp/1/p2p/" + PEER,)),
        Joined(1),
        Ready(NAME, (20, 30), 30, "float32", "cpu", 65536, cache_bytes=3 << 29),
        Ready(NAME, (0, 10), 30, "bfloat16", "cpu", 65536, "int8"),
    ]
    for event in events:
        voice.say(event)
    assert capsys.readouterr().err == (
        f"I am {PEER}, listening on\n  /ip4/10.0.0.1/tcp/1/p2p/{PEER}\njoined: 1 peer\n"
        "ready: org/model, blocks 20:30 of 30 (float32 on cpu, room for 65536 tokens of cache, 1.5 GiB)\n"
        "ready: org/model, blocks 0:10 of 30 (int8, bfloat16 on cpu, room for 65536 tokens of cache)\n"
    )


def test_json_never_holds_what_json_lacks() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_line(Done((), "", "stop", float("nan"), None, None, ()))


def test_blame_takes_ours_out_of_any_depth() -> None:
    error = BaseExceptionGroup("", [ExceptionGroup("", [NoPeers("Nobody.", hint="Wait.")]), PeerLost("Gone.")])
    found = blame(error)
    assert found.failed == Failed("no-peers", "Nobody.", "Wait.")
    assert found.exit_code == NoPeers.exit_code


def test_blame_prefers_what_nobody_foresaw() -> None:
    found = blame(ExceptionGroup("", [BlocksMissing("None."), ValueError("strange\nthing")]))
    assert found.failed is not None
    assert found.failed.code == "internal"
    assert found.failed.message == "swarmnode met an error that it did not foresee (ValueError: strange thing)."
    assert found.exit_code == INTERNAL_EXIT == 70


def test_a_broken_pipe_needs_no_words() -> None:
    found = blame(BrokenPipeError())
    assert (found.failed, found.exit_code) == (None, BROKEN_PIPE_EXIT)

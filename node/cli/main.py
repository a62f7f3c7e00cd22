"""The program `swarmnode`: from arguments to an exit code. Heavy things are imported by the commands that need them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from swarmnode.node.settings import Settings

    from .voice import Voice

__all__ = ["main"]

# Nodes run until they are told to leave, so a service manager's SIGTERM is their good end.
NODE_COMMANDS: Final = frozenset({"serve", "bootstrap"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code; `SystemExit` only after `--help` and `--version`.

    Without `argv` this is the whole process, and it ends here: with torch loaded, taking the interpreter down politely
    would cost seconds.
    """
    if argv is not None:
        return _main(list(argv))
    code = _main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _main(arguments: list[str]) -> int:
    from .blame import INTERRUPTED
    from .call import Call
    from .interrupts import Interrupted, Interrupts

    # An error in the arguments themselves must already be told in the voice that they ask for.
    voice = _voice(json="--json" in arguments or _is_set("SWARMNODE_JSON"), quiet=False)
    debug = "--debug" in arguments or _is_set("SWARMNODE_DEBUG")
    interrupts = Interrupts(lambda: voice.last_words(INTERRUPTED))
    with interrupts.installed():
        try:
            settings = _settle(arguments)
            debug = settings.debug
            voice = _voice(json=settings.json, quiet=settings.quiet)
            if settings.command in NODE_COMMANDS:
                interrupts.term_code = 0
            command = import_module(f".{settings.command.replace('-', '_')}", __package__)
            command.run(Call(settings, voice, interrupts))
            return 0
        except Interrupted:
            voice.close()
            # Not by returning: the interpreter would wait for threads that still compute or download.
            interrupts.leave()
        except Exception as error:  # noqa: BLE001 - the outermost edge of the program
            return _fail(error, voice, debug=debug)
        finally:
            voice.close()


def _settle(arguments: Sequence[str]) -> Settings:
    from swarmnode.node.config import resolve

    from .arguments import parse_arguments
    from .libraries import set_up_libraries

    command, given = parse_arguments(arguments)
    settings = resolve(command, given)
    set_up_libraries(debug=settings.debug)
    return settings


def _voice(*, json: bool, quiet: bool) -> Voice:
    if json:
        from .voice import JsonVoice

        return JsonVoice(quiet=quiet)
    from .people import PeopleVoice

    return PeopleVoice(quiet=quiet)


def _fail(error: Exception, voice: Voice, *, debug: bool) -> int:
    """Say what is wrong and return the exit code."""
    from .blame import BROKEN_PIPE_EXIT, blame

    voice.close()
    if debug:
        import traceback

        traceback.print_exception(error)
    found = blame(error)
    try:
        if found.failed is not None:
            voice.say(found.failed)
    except BrokenPipeError:
        found.exit_code = BROKEN_PIPE_EXIT
    if found.exit_code == BROKEN_PIPE_EXIT:
        # Python flushes standard output once more at its end; let that go nowhere instead of complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return found.exit_code


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() not in ("", "0", "no", "false", "off")


if __name__ == "__main__":
    sys.exit(main())

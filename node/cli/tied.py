"""`python -m swarmnode.node.cli.tied PARENT_PID ARGS…`: the program, tied to the life of the process that started it.

Whatever ends the parent, kill -9 included, ends this process too: on Linux the kernel sees to it, elsewhere (and there
as well) a thread waits for the end of standard input, whose other end only the parent holds.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Final

__all__ = ["tie_to"]

_PR_SET_PDEATHSIG: Final = 1
ORPHAN_EXIT: Final = 1


def tie_to(parent_pid: int) -> None:
    """End this process when its parent ends. The parent must have given it a pipe as standard input."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_with_input, name="swarmnode-tied", daemon=True).start()
    # The parent may have ended before the lines above.
    if os.getppid() != parent_pid:
        os._exit(ORPHAN_EXIT)


def _end_with_input() -> None:
    while os.read(0, 1):
        pass
    os._exit(ORPHAN_EXIT)


if __name__ == "__main__":
    tie_to(int(sys.argv[1]))
    from swarmnode.node.cli.main import main

    sys.exit(main(sys.argv[2:]))

"""`python -m swarmnode.node.cli.tied PARENT_PID`: the program, tied to its parent's life and told by it what to run."""

from __future__ import annotations

import sys

from swarmnode.node.cli.main import main
from swarmnode.node.waiting import run_when_told, tie_to

if __name__ == "__main__":
    tie_to(int(sys.argv[1]))
    run_when_told(main)

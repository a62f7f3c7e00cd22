"""What a session keeps: ids and hidden states in order, cut anywhere, embedded again at their places."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from swarmnode.models.checkpoint import open_checkpoint
from swarmnode.node.client.kept import Kept

Run = list[int] | int  # ids, or a number of hidden states


@given(st.lists(st.lists(st.integers(0, 9), max_size=4) | st.integers(1, 4), max_size=6), st.integers(0, 20))
def test_truncating_leaves_the_beginning(runs: list[Run], position: int) -> None:
    kept = Kept()
    flat: list[int | None] = []
    for run in runs:
        if isinstance(run, int):
            kept.add_hidden(torch.zeros(1, run, 8))
            flat += [None] * run
        else:
            kept.add_ids(run)
            flat += run
    assert len(kept) == len(flat)
    kept.truncate(position)
    flat = flat[:position]
    ids = [each for each in flat if each is not None]
    assert len(kept) == len(flat)
    assert list(kept.ids) == ids
    assert kept.all_ids == (len(ids) == len(flat))


def test_embeds_every_token_at_its_own_place(tiny_llama: Path) -> None:
    ends = open_checkpoint(str(tiny_llama)).load_ends(dtype=torch.float32)
    hidden = torch.randn(1, 3, ends.hidden_size)
    kept = Kept()
    kept.add_ids([5, 6])
    kept.add_ids([7])
    kept.add_hidden(hidden)
    kept.add_ids([8, 9])
    whole = kept.embed(ends, 0, 8)
    assert torch.equal(whole[:, :3], ends.embed(torch.tensor([[5, 6, 7]]), 0))
    assert torch.equal(whole[:, 3:6], hidden)
    assert torch.equal(whole[:, 6:], ends.embed(torch.tensor([[8, 9]]), 6))
    assert torch.equal(kept.embed(ends, 2, 7), whole[:, 2:7])

"""What a session has sent, as it was put in: token ids or hidden states, so that it can be sent again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from swarmnode.models.ends import Ends

__all__ = ["Kept"]


@dataclass(frozen=True, slots=True)
class _Ids:
    ids: list[int]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class _Hidden:
    hidden: torch.Tensor  # [1, tokens, hidden_size]

    def __len__(self) -> int:
        return self.hidden.shape[1]


class Kept:
    """A session's inputs from position 0 on. Ids cost next to nothing; hidden states keep their memory."""

    def __init__(self) -> None:
        self._runs: list[_Ids | _Hidden] = []
        self._tokens = 0

    def __len__(self) -> int:
        return self._tokens

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids, in order; tokens that went in as hidden states have none."""
        return tuple(id for run in self._runs if isinstance(run, _Ids) for id in run.ids)

    @property
    def all_ids(self) -> bool:
        """Whether every token has an id."""
        return all(isinstance(run, _Ids) for run in self._runs)

    def add_ids(self, ids: Sequence[int]) -> None:
        """Put token ids behind what there is."""
        if self._runs and isinstance(self._runs[-1], _Ids):
            self._runs[-1].ids.extend(ids)
        elif ids:
            self._runs.append(_Ids(list(ids)))
        self._tokens += len(ids)

    def add_hidden(self, hidden: torch.Tensor) -> None:
        """Put hidden states `[1, tokens, hidden_size]` behind what there is."""
        self._runs.append(_Hidden(hidden))
        self._tokens += hidden.shape[1]

    def truncate(self, position: int) -> None:
        """Forget everything from `position` on."""
        while self._tokens > position:
            run = self._runs.pop()
            self._tokens -= len(run)
            left = position - self._tokens
            if left > 0 and isinstance(run, _Ids):
                self.add_ids(run.ids[:left])
            elif left > 0 and isinstance(run, _Hidden):
                self.add_hidden(run.hidden[:, :left])

    def embed(self, ends: Ends, start: int, end: int) -> torch.Tensor:
        """What block 0 sees of the tokens `start:end`: `[1, end - start, hidden_size]`. On the torch thread."""
        pieces: list[torch.Tensor] = []
        begins = 0
        for run in self._runs:
            a, b = max(start, begins), min(end, begins + len(run))
            if a < b and isinstance(run, _Ids):
                pieces.append(ends.embed(torch.tensor([run.ids[a - begins : b - begins]]), a))
            elif a < b and isinstance(run, _Hidden):
                pieces.append(run.hidden[:, a - begins : b - begins].to(device=ends.device, dtype=ends.dtype))
            begins += len(run)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

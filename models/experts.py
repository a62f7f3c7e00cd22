"""Experts of a mixture, each on a multiple of `ROWS` rows, so that bits do not depend on how many tokens chose it."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import nn
from transformers.integrations.moe import ExpertsInterface, grouped_mm_experts_forward

__all__ = ["EXPERTS", "ROWS"]

EXPERTS = "swarmnode_ragged"
"""The name of this implementation in a config's `_experts_implementation`."""

ROWS = 4
"""A linear layer on a CPU gives a row the same bits in any number of rows that is a multiple of this."""


def _experts_in_whole_rows(
    self: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """As transformers' own `grouped_mm`, with tokens added that fill up what each chosen expert has to do."""
    tokens, choices = top_k_index.shape
    filling = _filling(top_k_index, cast(int, self.num_experts))
    added = filling.shape[0]
    hidden = torch.cat([hidden_states, hidden_states[-1:].expand(added, -1)])
    index = torch.cat([top_k_index, filling])
    weights = torch.cat([top_k_weights, top_k_weights.new_zeros(added, choices)])
    forward: Callable[..., torch.Tensor] = grouped_mm_experts_forward
    return forward(self, hidden, index, weights)[:tokens]


def _filling(chosen: torch.Tensor, experts: int) -> torch.Tensor:
    """Choices of more tokens, `[added, choices]`, after which each expert is chosen a multiple of `ROWS` times."""
    choices = chosen.shape[1]
    counts = torch.bincount(chosen.flatten(), minlength=experts)
    missing = torch.repeat_interleave(torch.arange(experts, device=chosen.device), -counts % ROWS)
    # Whole tokens are added, so the last one may need some more choices: all of the first expert, a multiple of ROWS.
    while (missing.numel() % choices) != 0:
        missing = torch.cat([missing, missing.new_zeros(ROWS)])
    return missing.view(-1, choices).to(chosen.dtype)


ExpertsInterface.register(EXPERTS, _experts_in_whole_rows)

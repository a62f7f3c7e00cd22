"""One answer of a model, told while it comes. Shared by the commands that ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmnode.errors import BadInput
from swarmnode.models.settings import Sampling

from .events import Done, Route, Token
from .place import hops_of

if TYPE_CHECKING:
    from swarmnode.node.library import Generation
    from swarmnode.node.settings import Settings

    from .voice import Voice

__all__ = ["adapter_of", "sampling_of", "tell"]


def sampling_of(settings: Settings) -> Sampling:
    """How tokens are chosen. Raises `BadInput`."""
    return Sampling(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        repetition_penalty=settings.repetition_penalty,
        seed=settings.seed,
        stop=settings.stop,
    )


def adapter_of(settings: Settings) -> str | None:
    """The adapter to use. Raises `BadInput`."""
    if len(settings.adapter) > 1:
        raise BadInput("An answer is given with one adapter, not several.", hint="Give --adapter once.")
    for adapter in settings.adapter:
        if "=" in adapter:
            raise BadInput(f"{adapter!r} says where an adapter is.", hint="Here name one that servers have.")
        return adapter
    return None


async def tell(generation: Generation, voice: Voice, *, tells_route: bool = True) -> None:
    """Tell the route, each token as it comes, and the end."""
    async with generation:
        route = await generation.open()
        if tells_route:
            voice.say(Route(hops=hops_of(route)))
        async for piece in generation:
            for token in piece.ids:
                voice.say(Token(id=token, text=str(piece)))
        assert generation.finish_reason is not None
        voice.say(
            Done(
                ids=tuple(generation.ids),
                text=generation.text,
                finish_reason=generation.finish_reason,
                ttft_seconds=generation.ttft_seconds,
                tokens_per_second=generation.tokens_per_second or None,
                hop_seconds=generation.hop_seconds or None,
                route=hops_of(generation.route or route),
            )
        )

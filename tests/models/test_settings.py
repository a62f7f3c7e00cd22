"""Sampling settings refuse what makes no sense, by name."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from swarmnode.errors import BadInput
from swarmnode.models.settings import Sampling


def test_defaults_are_greedy() -> None:
    assert Sampling().greedy
    assert not Sampling(temperature=0.7).greedy


def test_stop_may_come_as_a_list() -> None:
    assert Sampling(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]
    assert hash(Sampling(stop=["a"])) == hash(Sampling(stop=("a",)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", True),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("seed", -1),
        ("seed", 2**63),
        ("stop", "text"),
        ("stop", (1,)),
    ],
)
def test_refuses_by_name(field: str, value: object) -> None:
    with pytest.raises(BadInput, match=field):
        Sampling(**{field: value})  # type: ignore[arg-type]


def test_refuses_empty_and_too_many_stop_strings() -> None:
    with pytest.raises(BadInput, match="empty"):
        Sampling(stop=("",))
    with pytest.raises(BadInput, match="65 stop strings"):
        Sampling(stop=("x",) * 65)


def test_the_light_files_import_nothing_heavy() -> None:
    program = (
        "import sys, swarmnode.models.settings, swarmnode.models.blocks, swarmnode.models.progress, "
        "swarmnode.models.bundled, swarmnode.models.stopping\n"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

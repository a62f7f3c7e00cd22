"""The table of families is what certifying them today gives, and it is long enough."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from swarmnode.models import certify
from swarmnode.models.families import all_certificates, certificate
from swarmnode.models.quirks import quirks_of

LEAST_CERTIFIED = 100
LEAST_RAGGED = 100
NAMED = (
    *("bloom", "deepseek_v3", "falcon", "gemma3", "gemma4", "glm4"),
    *("gpt_oss", "llama", "mistral", "mixtral", "qwen3", "qwen3_5"),
)
"""Those that must be there, with tests of their own in test_named_families.py."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_at_least_a_hundred_and_all_that_were_promised() -> None:
    served = {entry.family for entry in all_certificates() if entry.certified}
    assert len(served) >= LEAST_CERTIFIED
    assert served >= set(NAMED)


def test_at_least_a_hundred_share_passes() -> None:
    sharing = {entry.family for entry in all_certificates() if entry.ragged}
    assert len(sharing) >= LEAST_RAGGED
    assert sharing >= {"deepseek_v3", "gemma3", "glm4", "gpt_oss", "llama", "mistral", "mixtral", "qwen3", "qwen3_moe"}


def test_every_family_of_the_installed_transformers_is_in_the_table() -> None:
    assert [entry.family for entry in all_certificates()] == certify.known_families()


def test_table_and_page_say_the_same_of_the_installed_version() -> None:
    entries = all_certificates()
    assert certify.TABLE.read_text(encoding="utf-8") == certify.table(entries)
    assert certify.PAGE.read_text(encoding="utf-8") == certify.page(entries)
    assert transformers.__version__ in certify.TABLE.read_text(encoding="utf-8")


def test_certified_means_no_difference_and_refused_means_a_reason() -> None:
    for entry in all_certificates():
        if entry.certified:
            assert (entry.reason, entry.max_difference) == ("", 0.0)
        else:
            assert entry.reason.endswith(".")
            assert not entry.truncatable
            assert not entry.ragged
            assert not entry.trains
        assert entry.ragged == (entry.certified and not entry.why_not_ragged)
        assert entry.trains == (entry.certified and not entry.why_not_trains)


CERTIFIED = [entry.family for entry in all_certificates() if entry.certified]


@pytest.mark.slow
@pytest.mark.in_turns
@pytest.mark.parametrize("family", CERTIFIED)
def test_a_family_is_still_certified(family: str) -> None:
    found, promised = certify.certify_family(family), certificate(family)
    if family == "kolibri1":  # it may share passes with AVX2, not with AVX-512: the promise is for every machine
        found = replace(found, ragged=False, why_not_ragged=promised.why_not_ragged)
    assert found == promised


@pytest.mark.parametrize("family", [entry.family for entry in all_certificates() if not entry.certified])
def test_a_family_is_still_refused(family: str) -> None:
    assert certify.certify_family(family) == certificate(family)


def test_a_model_whose_stock_cache_forgets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock mamba loses its state when several tokens follow earlier ones: only sending them singly helps."""
    quirks = quirks_of("llama")
    monkeypatch.setattr("swarmnode.models.comparison.quirks_of", lambda _: quirks)
    monkeypatch.setattr("swarmnode.models.span.quirks_of", lambda _: quirks)
    entry = certify.certify_family("mamba")
    assert not entry.certified
    assert "decodes from the cache otherwise than at once" in entry.reason


def test_a_difference_is_found_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from swarmnode.models.ends import Ends

    honest = Ends.logits

    def off_by_little(self: Ends, hidden: torch.Tensor, *, last_only: bool = True) -> torch.Tensor:
        return honest(self, hidden, last_only=last_only) + 1e-6

    monkeypatch.setattr(Ends, "logits", off_by_little)
    entry = certify.certify_family("llama")
    assert not entry.certified
    assert entry.max_difference is not None
    assert 0 < entry.max_difference < 1e-5
    assert "a prompt at once" in entry.reason


def test_the_command_prints_a_line_for_each_family_asked(capsys: pytest.CaptureFixture[str]) -> None:
    certify.main(["--family", "gpt2", "--family", "xlm"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["gpt2", "certified,", "goes", "back,", "shares,", "trains"]
    assert second.split(maxsplit=1) == ["xlm", "It keeps no list of whole blocks."]

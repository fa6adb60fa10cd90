"""Every family of seq2seq: trained, scored, asked, saved, read again, adapted, merged."""

from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, carry_through, told


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # what peft asks of transformers
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # of a pair of which one half stores its layers transposed
@pytest.mark.parametrize("family", FAMILIES["seq2seq"])
def test_a_family_can_all(family: str, material: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any):
    record_property("family", told(carry_through("seq2seq", family, material, monkeypatch)))

"""Every family of clm: trained, scored, asked, saved, read again, adapted, merged."""

from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, carry_through, told


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # what peft asks of transformers
@pytest.mark.parametrize("family", FAMILIES["clm"])
def test_a_family_can_all(family: str, material: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any):
    record_property("family", told(carry_through("clm", family, material, monkeypatch)))

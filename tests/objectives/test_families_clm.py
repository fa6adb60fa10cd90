"""Every family of clm is trained, evaluated, prompted, saved, loaded, adapted and merged."""

from pathlib import Path
from typing import Any

import pytest
from families import check_family, table_row
from tiny_models import FAMILIES


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # from peft
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES["clm"])
def test_family_passes_through_every_command(
    family: str, material: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
):
    record_property("family", table_row(check_family("clm", family, material, monkeypatch)))

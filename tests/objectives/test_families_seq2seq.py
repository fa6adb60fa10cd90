"""Every family of seq2seq is trained, evaluated, prompted, saved, loaded, adapted and merged."""

from pathlib import Path
from typing import Any

import pytest
from families import check_family, table_row
from tiny_models import FAMILIES


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # from peft
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # one half of bert2gpt2 stores its layers transposed
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES["seq2seq"])
def test_family_passes_through_every_command(
    family: str, material: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
):
    record_property("family", table_row(check_family("seq2seq", family, material, monkeypatch)))

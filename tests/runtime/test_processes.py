"""The variables of launchers: those for one process change nothing, those for several have to be complete."""

import os

import pytest

from lmtrain.cli import launch
from lmtrain.config.train import Run
from lmtrain.errors import UsageError
from lmtrain.runtime import group, processes

NAMES = (*processes.SIZES, *processes.RENDEZVOUS, "LOCAL_WORLD_SIZE", processes.TORCHRUN, group.FOLDER)
COMPLETE = {"RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def launched_with(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


ALONE = [
    {},
    {"WORLD_SIZE": "1"},
    {"RANK": "0", "WORLD_SIZE": "1"},
    {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"},
    {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
    {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "algo-1"},
    {"LOCAL_RANK": "0"},
    {"RANK": "3"},
    {"WORLD_SIZE": ""},
    {"WORLD_SIZE": "0"},
    {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
    {"PMI_SIZE": "1"},
    {"WORLD_SIZE": "1", "PMI_SIZE": "4"},
    {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
]


@pytest.mark.parametrize("variables", ALONE)
def test_a_single_process_is_alone_and_may_start_several(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    launched_with(monkeypatch, variables)
    assert processes.is_first_process()
    assert launch.wanted(Run(num_processes=2)) and not launch.wanted(Run())
    processes.settle()
    assert not {"RANK", "LOCAL_RANK", *processes.SIZES} & os.environ.keys()
    assert processes.not_used(2) is None


def test_torchrun_keeps_the_variables_of_its_single_process(monkeypatch: pytest.MonkeyPatch):
    launched_with(monkeypatch, {**COMPLETE, "RANK": "0", "WORLD_SIZE": "1", processes.TORCHRUN: "none"})
    processes.settle()
    assert os.environ["LOCAL_RANK"] == "1" and processes.is_first_process()


def test_several_processes_start_no_others(monkeypatch: pytest.MonkeyPatch):
    launched_with(monkeypatch, {**COMPLETE, "WORLD_SIZE": "2"})
    processes.settle()
    assert not processes.is_first_process()
    assert not launch.wanted(Run(num_processes=4))
    assert processes.not_used(2) is None and processes.not_used(None) is None
    assert "--num-processes 4 is not used" in str(processes.not_used(4))


def test_what_accelerate_started_starts_no_others(monkeypatch: pytest.MonkeyPatch):
    assert launch.wanted(Run(accelerate_config="one.yaml"))
    monkeypatch.setenv(group.FOLDER, "folder")
    assert not launch.wanted(Run(accelerate_config="one.yaml"))


@pytest.mark.parametrize("missing", processes.RENDEZVOUS)
@pytest.mark.parametrize("size", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_processes_that_cannot_meet_are_refused(missing: str, size: str, monkeypatch: pytest.MonkeyPatch):
    launched_with(monkeypatch, {**COMPLETE, size: "2"})
    monkeypatch.delenv(missing)
    assert processes.is_first_process(), "each says it"
    with pytest.raises(UsageError, match=rf"{size} is 2 .* without {missing}; start them with torchrun"):
        processes.settle()


@pytest.mark.parametrize("size", ["two", "-1", "1.5"])
def test_a_size_that_is_no_number_is_refused(size: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(UsageError, match=r"WORLD_SIZE is .* not a number"):
        processes.settle()

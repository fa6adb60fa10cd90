"""What srun, mpirun and Kubernetes say of the processes that they start."""

import pytest

from lmtrain.cli import launch
from lmtrain.config.train import Run
from lmtrain.runtime import cluster

SRUN = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "4711"}
SRUN |= {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[07-08]"}
PER_HOST = {**SRUN, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}


def adopted(variables: dict[str, str]) -> dict[str, str]:
    """Torchrun's variables after `adopt`."""
    environment = dict(variables)
    cluster.adopt(environment)
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    return {name: environment[name] for name in names if name in environment}


def test_tasks_of_srun_meet_at_the_first_host_of_the_job():
    meeting = {"MASTER_ADDR": "gpu07", "MASTER_PORT": "24711"}
    assert adopted(SRUN) == {"WORLD_SIZE": "16", "RANK": "9", "LOCAL_RANK": "1", **meeting}


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("a[3,5-7]", "a3"), ("a[003-010],b2", "a003"), ("x1,a[1-2]", "x1")],
)
def test_the_first_host_of_a_list(hosts: str, first: str):
    assert adopted({**SRUN, "SLURM_STEP_NODELIST": hosts})["MASTER_ADDR"] == first


def test_processes_of_mpirun_on_one_host_meet_there():
    found = adopted({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"})
    assert found.pop("MASTER_PORT").isdigit()
    assert found == {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "3", "MASTER_ADDR": "127.0.0.1"}


def test_processes_of_mpirun_on_several_hosts_need_an_address():
    assert "MASTER_ADDR" not in adopted({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"})
    given = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert adopted({**OPEN_MPI, **given})["MASTER_ADDR"] == "10.0.0.1"


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # the batch script
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
    ],
)
def test_a_single_process_is_left_alone(variables: dict[str, str]):
    assert adopted(variables) == {}


def test_torchrun_goes_before_srun():
    assert adopted({**SRUN, "WORLD_SIZE": "2", "RANK": "1"}) == {"WORLD_SIZE": "2", "RANK": "1"}


def test_one_task_of_srun_per_host_starts_the_processes_of_its_host(monkeypatch: pytest.MonkeyPatch):
    for name, value in PER_HOST.items():
        monkeypatch.setenv(name, value)
    cluster.adopt()
    assert cluster.hosts_of_slurm() == (2, 1, "gpu07:24711")
    assert launch.wanted(Run(num_processes=8)) and not launch.wanted(Run())
    cluster.forget()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "16")
    assert cluster.hosts_of_slurm() is None


def test_pods_of_an_indexed_job_are_numbered():
    assert cluster.host_number(None, {"JOB_COMPLETION_INDEX": "3"}) == 3
    assert cluster.host_number(1, {"JOB_COMPLETION_INDEX": "3"}) == 1
    assert cluster.host_number(None, {}) == 0

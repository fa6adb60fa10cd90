"""The variables of SLURM and MPI, which start processes themselves, as those of torchrun.

srun and mpirun give each process a rank. What torch needs besides, the address where processes meet, follows from the job.
"""

import os
import re
from collections.abc import MutableMapping
from dataclasses import dataclass

PORTS = range(20000, 40000)
"""The port where the processes of a job meet follows from the number of the job."""


@dataclass(frozen=True)
class Names:
    """The variables of a launcher."""

    size: str
    rank: str
    local_rank: str
    local_size: str = ""


SLURM = Names("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")
MPI = (
    Names("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    Names("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    Names("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
)

MEETING = ("MASTER_ADDR", "MASTER_PORT")
"""Where processes meet. What the user gives goes before what follows from the job."""

ADOPTED = "_LMTRAIN_ADOPTED"
"""Set where torchrun's variables were made from those of another launcher."""

INDEX = "JOB_COMPLETION_INDEX"
"""Which of its pods this is, in an Indexed Job of Kubernetes."""


def adopt(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set torchrun's variables where srun or mpirun started this process as one of several; else change nothing."""
    if environment.get("WORLD_SIZE"):
        return
    names = next((names for names in (SLURM, *MPI) if _is_set(names, environment)), None)
    if names is None:
        return
    found = {"WORLD_SIZE": environment[names.size], "RANK": environment[names.rank]}
    found["LOCAL_RANK"] = environment[names.local_rank]
    if names is SLURM:
        found |= {"MASTER_ADDR": _first_host(environment), "MASTER_PORT": str(_port(environment))}
    elif environment.get(names.local_size) == environment[names.size]:  # all on this host
        found |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(PORTS.start + os.getppid() % len(PORTS))}
    given = {name: environment[name] for name in MEETING if environment.get(name)}
    environment.update({**found, **given, ADOPTED: ""})


def forget(environment: MutableMapping[str, str] = os.environ) -> None:
    """Undo `adopt`: this process starts those that train."""
    if environment.pop(ADOPTED, None) is not None:
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", *MEETING):
            environment.pop(name, None)


def _is_set(names: Names, environment: MutableMapping[str, str]) -> bool:
    values = [environment.get(name, "") for name in (names.size, names.rank, names.local_rank)]
    return all(value.isdigit() for value in values) and int(values[0]) > 1


def hosts_of_slurm(environment: MutableMapping[str, str] = os.environ) -> tuple[int, int, str] | None:
    """(number of hosts, number of this one, HOST:PORT to meet) where srun started one task on each of several hosts."""
    hosts, tasks = (environment.get(name, "") for name in ("SLURM_STEP_NUM_NODES", SLURM.size))
    if not _is_set(SLURM, environment) or hosts != tasks:
        return None
    return int(hosts), int(environment[SLURM.rank]), f"{_first_host(environment)}:{_port(environment)}"


def _first_host(environment: MutableMapping[str, str]) -> str:
    """The first host of a list such as `gpu[07-09,12],login1`."""
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    found = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\])?", hosts)
    return f"{found[1]}{found[2] or ''}" if found else hosts


def _port(environment: MutableMapping[str, str]) -> int:
    job = environment.get("SLURM_JOB_ID", "0")
    return PORTS[int(job) % len(PORTS)] if job.isdigit() else PORTS.start


def host_number(given: int | None, environment: MutableMapping[str, str] = os.environ) -> int:
    """The number of this host: as given, or that of a pod in an Indexed Job; 0 where nothing says so."""
    if given is not None:
        return given
    return int(environment.get(INDEX, "")) if environment.get(INDEX, "").isdigit() else 0

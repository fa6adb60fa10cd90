"""Where the launchers of several hosts meet: torch's c10d rendezvous, in which each host keeps its number.

torch numbers hosts by their names. Here host 0 stays host 0 after a restart, because it writes the run folder.
"""

import os
import socket
from datetime import timedelta
from typing import Any

import psutil
from torch.distributed.elastic.rendezvous import (
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout

BACKEND = "lmtrain"
ADDRESS = "lmtrain/address"


class NumberedRendezvous(DynamicRendezvousHandler):
    """Ranks are the numbers of the hosts; processes meet at the address that reaches host 0."""

    address: str

    def get_backend(self) -> str:
        """The name under which torch's registry has this rendezvous."""
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for all hosts. Raises RendezvousTimeoutError."""
        joined = super().next_rendezvous()
        if joined.rank == 0:
            joined.store.set(ADDRESS, self.address)
        address = joined.store.get(ADDRESS).decode()
        info = joined.bootstrap_store_info
        assert info, "the store is not shared"
        meeting = RendezvousStoreInfo(address, info.master_port)
        return RendezvousInfo(joined.store, joined.rank, joined.world_size, meeting)


def register() -> None:
    """Let torch's launcher find this rendezvous by name."""
    # The store of the processes is then a server of rank 0, not one at the name by which this rendezvous sorts hosts.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    rendezvous_handler_registry.register(BACKEND, _create)


def _create(parameters: RendezvousParameters) -> Any:
    backend, store = create_backend(parameters)
    wait = timedelta(seconds=float(parameters.get("join_timeout", 600)))
    handler: Any = NumberedRendezvous.from_backend(
        parameters.run_id,
        store,
        backend,
        parameters.min_nodes,
        parameters.max_nodes,
        f"{int(parameters.get('number', 0)):06}",
        RendezvousTimeout(join=wait, last_call=timedelta(seconds=1)),
    )
    handler.address = own_address(parameters.endpoint)
    if interface := _interface_of(handler.address):  # else gloo takes the one that the name of this host leads to
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    return handler


def _interface_of(address: str) -> str | None:
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.partition("%")[0] == address for found in addresses):
            return name
    return None


def own_address(endpoint: str) -> str:
    """The address of this host on the way to `endpoint`, HOST:PORT."""
    host, _, port = endpoint.rpartition(":")
    family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)  # sends nothing: UDP
        return str(probe.getsockname()[0])

"""Where the local API listens: a TCP endpoint, or a unix socket.

Rules that this module keeps:

- Nothing is taken from another process that listens already; a socket file that a dead process left behind is
  removed, and nothing else is.
- A host is what the resolver says first; nothing binds to a second address behind the user's back.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from pathlib import Path
from typing import Final

from edge_agent.config import UNIX_PREFIX, Endpoint

#: The kernel's own limit, less the final zero.
MAX_SOCKET_PATH_BYTES: Final = 107


Address = Endpoint | Path


def show(address: Address) -> str:
    """As a user writes it."""
    return f"{UNIX_PREFIX}{address}" if isinstance(address, Path) else str(address)


def with_port(address: Endpoint, port: int) -> Endpoint:
    """The same host, once the port is known."""
    return Endpoint(host=address.host, port=port)


def is_local(address: Address) -> bool:
    """Whether only this machine can reach it."""
    if isinstance(address, Path) or address.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return False


def claim(address: Address) -> Address:
    """The address with its host resolved, once it is sure that nobody listens there. Raises ``OSError``."""
    if isinstance(address, Path):
        _clear_socket(address)
        return address
    family, kind, _, _, name = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
        # As a listener would: a port that merely waits for its last connections to fade is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(name)
    return Endpoint(host=str(name[0]), port=address.port)


def _clear_socket(path: Path) -> None:
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise OSError(errno.ENAMETOOLONG, f"more than {MAX_SOCKET_PATH_BYTES} bytes for a socket", str(path))
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "is there and is no socket", str(path))
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except FileNotFoundError:
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), str(path))

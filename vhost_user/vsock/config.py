"""What to serve: VMs from `--vm KEY=VALUE,...` or from a YAML file.

The keys are vhost-device-vsock's, with `-` or `_` between words:

    vms:
      - guest_cid: 3
        socket: /run/vm3.vhost
        uds_path: /run/vm3.vsock
        tx_buffer_size: 1048576
        queue_size: 32768
        groups: web+db
        max_conns: 65536
        max_queued_bytes: 268435456
        accept_rate: 0
        memory_files: ram
        socket_mode: 0660
        socket_group: kvm
      - guest_cid: 4
        socket: /run/vm4.vhost
        forward_cid: 1
        forward_listen: 9001+9002
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from vhost_user.descriptors import MemoryFiles
from vhost_user.engine import (
    DEFAULT_BUF_ALLOC,
    DEFAULT_MAX_CONNS,
    DEFAULT_MAX_QUEUED_BYTES,
    MAX_QUEUE_SIZE,
    MIN_WINDOW,
)
from vhost_user.sockets import (
    DEFAULT_SOCKET_MODE,
    MAX_PATH,
    Access,
    parse_group,
    parse_mode,
)
from vhost_user.vsock.device import (
    DEFAULT_QUEUE_SIZE,
    MAX_GUEST_CID,
    MIN_GUEST_CID,
)
from vhost_user.vsock.hybrid import MAX_WAITING, seqpacket_path
from vhost_user.vsock.packet import CID_ANY, PORT_ANY

if TYPE_CHECKING:
    from yaml import MappingNode, Node

# What one uds_path must leave room for: "_" and the longest port.
_PORT_SUFFIX: Final = len("_4294967295")

DEFAULT_GROUPS: Final = frozenset({"default"})

MIN_TX_BUFFER: Final = 4096
MAX_TX_BUFFER: Final = 1 << 30

# More than the descriptors that a Linux process may have by default.
MAX_MAX_CONNS: Final = 1 << 20
MAX_QUEUED_BYTES: Final = 1 << 40
# Descriptors for other things than connections: what the process has, and what a VM's
# front-end (memory, rings) and host clients that sent no CONNECT line may have.
PROCESS_FDS: Final = 64
VM_FDS: Final = MAX_WAITING + 64
LEAST_SHARE: Final = 16
MAX_ACCEPT_RATE: Final = 10_000_000
MAX_CONFIG: Final = 1 << 20
"""Characters of a configuration file."""

Pairs: TypeAlias = Iterable[tuple[str, str, str]]
"""Key, value, and where it was written, for a message about it."""


class ConfigError(Exception):
    """An option or configuration that can't be used; the text is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmConfig:
    """One VM to serve."""

    socket: Path
    """The vhost-user socket that its VMM connects to."""
    uds_path: Path | None = None
    """Host side of its vsock, as unix sockets."""
    forward_cid: int | None = None
    """Host side of its vsock, as vsock: connections to CID 2 go there. With neither,
    it can reach nothing but siblings and the echo port."""
    forward_listen: tuple[int, ...] = ()
    """Vsock ports of this host whose connections go to the same port of the guest."""
    guest_cid: int = MIN_GUEST_CID
    tx_buffer_size: int = DEFAULT_BUF_ALLOC
    """Bytes of a connection on their way to the host."""
    queue_size: int = DEFAULT_QUEUE_SIZE
    groups: frozenset[str] = DEFAULT_GROUPS
    """VMs that share a group reach each other by CID."""
    max_conns: int = DEFAULT_MAX_CONNS
    max_queued_bytes: int = DEFAULT_MAX_QUEUED_BYTES
    """Bytes from the guest, of all its connections, that may wait for the host."""
    accept_rate: int = 0
    """Requests a second from the guest, and from the host; 0: any number."""
    memory_files: MemoryFiles = MemoryFiles.RAM
    """Which files the VMM may share as the guest's memory."""
    socket_mode: int = DEFAULT_SOCKET_MODE
    """Permission bits of `socket` and of the sockets at `uds_path`."""
    socket_group: int | None = None
    """Group id of these; None: as the system has it."""

    @property
    def access(self) -> Access:
        """Who may connect to its sockets."""
        return Access(self.socket_mode, self.socket_group)

    def __post_init__(self) -> None:
        if self.max_queued_bytes < self.max_conns * MIN_WINDOW:
            raise ConfigError(
                f"max_queued_bytes {self.max_queued_bytes} is less than {MIN_WINDOW} "
                f"for each of {self.max_conns} connections (max_conns)"
            )


def parse_vm(text: str) -> VmConfig:
    """Parse the argument of `--vm`.

    Raises:
        ConfigError: a bad key or value, or one twice.
    """
    pairs = []
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"--vm {text}: {part!r} is not KEY=VALUE")
        pairs.append((key, value, f"--vm {text}"))
    return _build(pairs, f"--vm {text}")


def load(path: Path) -> list[VmConfig]:
    """Read the VMs from a YAML file.

    Raises:
        ConfigError: it can't be read or isn't right; says file, line and key.
    """
    import yaml  # here: a process without --config stays light

    try:
        with path.open() as file:
            text = file.read(MAX_CONFIG + 1)
        if len(text) > MAX_CONFIG:
            raise ConfigError(f"{path}: more than {MAX_CONFIG} characters")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: {reason}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise ConfigError(f"{path}{line}: {problem}") from None
    return _vms(path, root)


def check(vms: list[VmConfig], stats_socket: Path | None = None) -> None:
    """Check VMs, and the path of the counters' socket, against each other.

    Raises:
        ConfigError: there is no VM, two want the same CID, path or port, or one path
            is where a guest's connections go.
    """
    if not vms:
        raise ConfigError("no VM: give --socket, --vm or --config")
    paths = [] if stats_socket is None else [stats_socket]
    claims: list[tuple[str, object]] = []
    for vm in vms:
        claims.append(("guest CID", vm.guest_cid))
        claims += [("forward_listen port", port) for port in vm.forward_listen]
        paths.append(vm.socket)
        if vm.uds_path is not None:
            paths += [vm.uds_path, seqpacket_path(vm.uds_path)]
    claims += [("path", path) for path in paths]
    for i, claim in enumerate(claims):
        if claim in claims[:i]:
            raise ConfigError(f"{claim[0]} {claim[1]} is used twice")
    for path in paths:
        stem, _, port = str(path).rpartition("_")
        if port.isdecimal() and stem in {str(vm.uds_path) for vm in vms}:
            raise ConfigError(f"path {path} is port {port} of uds_path {stem}")


def share_descriptors(vms: list[VmConfig], limit: int) -> list[VmConfig]:
    """Lower each `max_conns` to its share if not all could be had at once.

    A connection takes a file descriptor: without this, one VM could take those of all
    others. Where there is one VM, it may have more connections than descriptors:
    those to the engine's own echo take none.

    Args:
        vms: what was asked for.
        limit: descriptors that the process may have.
    """
    room = limit - PROCESS_FDS - len(vms) * VM_FDS
    if len(vms) == 1 or sum(vm.max_conns for vm in vms) <= room:
        return vms
    share = max(LEAST_SHARE, room // len(vms))
    return [replace(vm, max_conns=min(vm.max_conns, share)) for vm in vms]


def integer(text: str, low: int, high: int) -> int:
    """Return `text` as a number of the range; ConfigError if it isn't one."""
    if not re.fullmatch("-?[0-9]{1,20}", text):
        raise ConfigError(f"{text!r} is not a number")
    number = int(text)
    if not low <= number <= high:
        raise ConfigError(f"{number} is not in {low}..{high}")
    return number


def socket_path(text: str) -> Path:
    """Return `text` as a path that a socket can have; ConfigError if it can't."""
    if not text or len(text.encode()) > MAX_PATH:
        raise ConfigError(f"a socket's path has 1..{MAX_PATH} bytes: {text!r}")
    return Path(text)


def tcp_address(text: str) -> tuple[str, int]:
    """Return `ADDR:PORT`, ADDR an IP address; ConfigError if it isn't that."""
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        return str(address), integer(port, 0, 65535)
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"{text!r} is not IP:PORT: {error}") from None


def _uds_path(text: str) -> Path:
    if len(text.encode()) + _PORT_SUFFIX > MAX_PATH:
        limit = MAX_PATH - _PORT_SUFFIX
        raise ConfigError(f"at most {limit} bytes, a port is added to it: {text!r}")
    return socket_path(text)


def _queue_size(text: str) -> int:
    size = integer(text, 2, MAX_QUEUE_SIZE)
    if size & (size - 1):
        raise ConfigError(f"{size} is not a power of two")
    return size


def _forward_listen(text: str) -> tuple[int, ...]:
    ports = tuple(integer(port, 0, PORT_ANY - 1) for port in text.split("+"))
    if len(set(ports)) < len(ports):
        raise ConfigError(f"a port is given twice: {text!r}")
    return ports


def memory_files(text: str) -> MemoryFiles:
    """Return `ram` or `any` as what it means; ConfigError if it is neither."""
    try:
        return MemoryFiles(text)
    except ValueError:
        words = " or ".join(each.value for each in MemoryFiles)
        raise ConfigError(f"{text!r} is not {words}") from None


def _checked(parse: Callable[[str], int], text: str) -> int:
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _groups(text: str) -> frozenset[str]:
    names = text.split("+")
    if not all(names):
        raise ConfigError(f"a group without a name: {text!r}")
    return frozenset(names)


_KEYS: Final[Mapping[str, Callable[[str], Any]]] = {
    "guest_cid": lambda text: integer(text, MIN_GUEST_CID, MAX_GUEST_CID),
    "socket": socket_path,
    "uds_path": _uds_path,
    "tx_buffer_size": lambda text: integer(text, MIN_TX_BUFFER, MAX_TX_BUFFER),
    "forward_cid": lambda text: integer(text, 0, CID_ANY - 1),
    "forward_listen": _forward_listen,
    "queue_size": _queue_size,
    "groups": _groups,
    "max_conns": lambda text: integer(text, 1, MAX_MAX_CONNS),
    "max_queued_bytes": lambda text: integer(text, MIN_WINDOW, MAX_QUEUED_BYTES),
    "accept_rate": lambda text: integer(text, 0, MAX_ACCEPT_RATE),
    "memory_files": memory_files,
    "socket_mode": lambda text: _checked(parse_mode, text),
    "socket_group": lambda text: _checked(parse_group, text),
}


def from_options(options: Mapping[str, str]) -> VmConfig:
    """Build the one VM of `--guest-cid`, `--socket` and their like.

    Raises:
        ConfigError: a bad value.
    """
    flags = (
        (key, value, "--" + key.replace("_", "-")) for key, value in options.items()
    )
    return _build(flags, "command line")


def _build(pairs: Pairs, where: str) -> VmConfig:
    values: dict[str, Any] = {}
    for raw, text, place in pairs:
        key = raw.strip().replace("-", "_")
        if key not in _KEYS:
            raise ConfigError(f"{place}: unknown key {raw!r}")
        if key in values:
            raise ConfigError(f"{place}: {key} is given twice")
        try:
            values[key] = _KEYS[key](text.strip())
        except ConfigError as error:
            raise ConfigError(f"{place}: {key}: {error}") from None
    if "socket" not in values:
        raise ConfigError(f"{where}: socket is missing")
    if "forward_cid" in values and "uds_path" in values:
        raise ConfigError(f"{where}: give one of uds_path and forward_cid")
    if "forward_listen" in values and "forward_cid" not in values:
        raise ConfigError(f"{where}: forward_listen needs forward_cid")
    try:
        return VmConfig(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _vms(path: Path, root: Node | None) -> list[VmConfig]:
    from yaml import MappingNode, SequenceNode

    if not isinstance(root, MappingNode):
        raise ConfigError(f"{path}:1: need a mapping with the key vms")
    vms: list[VmConfig] = []
    for key, value in root.value:
        line = key.start_mark.line + 1
        if key.value != "vms":
            raise ConfigError(f"{path}:{line}: unknown key {key.value!r}")
        if not isinstance(value, SequenceNode):
            raise ConfigError(f"{path}:{line}: vms: need a list")
        for item in value.value:
            where = f"{path}:{item.start_mark.line + 1}"
            if not isinstance(item, MappingNode):
                raise ConfigError(f"{where}: vms: need a mapping")
            vms.append(_build(_scalars(path, item), where))
    return vms


def _scalars(path: Path, mapping: MappingNode) -> Pairs:
    from yaml import ScalarNode

    for key, value in mapping.value:
        where = f"{path}:{key.start_mark.line + 1}"
        if not isinstance(value, ScalarNode) or value.tag.endswith(":null"):
            raise ConfigError(f"{where}: {key.value}: need one value")
        yield str(key.value), str(value.value), where

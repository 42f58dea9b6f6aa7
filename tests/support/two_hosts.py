"""Two hosts on this machine: network namespaces that one cable joins, each with an SSH server of its own.

The hosts have this machine's processes and files in common, and no network but the cable.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = {"ip": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "pdsh": "pdsh"}
"""Program -> the package of Debian that has it."""
INTERFACE = "cable0"
_ADDRESSES = {"node-a": "10.213.77.1", "node-b": "10.213.77.2"}
_SBIN = "/usr/sbin"  # not on the PATH of every user
_WAIT_S = 20.0


def missing() -> str:
    """Return why this machine cannot hold two hosts, or an empty text."""
    if os.getuid() != 0:
        return "network namespaces need root"
    absent = [package for program, package in PROGRAMS.items() if _program(program) is None]
    if absent:
        return f"needs apt-get install {' '.join(absent)}"
    name = f"mcframe-{os.getpid()}-try"
    done = subprocess.run([_program("ip"), "netns", "add", name], capture_output=True, text=True)
    if done.returncode:
        return f"network namespaces are not allowed here: {done.stderr.strip()}"
    _ip("netns", "delete", name)
    return ""


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")


def _ip(*arguments: str) -> None:
    done = subprocess.run([_program("ip"), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


@dataclass(frozen=True)
class TwoHosts:
    """Two hosts that reach each other through SSH, by the names `node-a` and `node-b`.

    Attributes:
        folder: A folder of both.
        namespaces: Host -> its network namespace.
    """

    folder: Path
    namespaces: dict[str, str]

    @property
    def host_file(self) -> Path:
        """DeepSpeed's list of hosts, one rank each."""
        file = self.folder / "hosts"
        file.write_text("".join(f"{name} slots=1\n" for name in self.namespaces), "utf-8")
        return file

    def on(self, host: str, command: Sequence[str]) -> list[str]:
        """Return the command that runs on a host."""
        return [str(_program("ip")), "netns", "exec", self.namespaces[host], *command]

    @property
    def path(self) -> str:
        """PATH with an `ssh` that has the key of these hosts, as an entry in ~/.ssh/config would set it."""
        return f"{self.folder / 'bin'}:{os.environ['PATH']}:{_SBIN}"


@contextmanager
def two_hosts(folder: Path) -> Iterator[TwoHosts]:
    """Create two hosts, and remove them at the end, with every process that they started."""
    namespaces = {name: f"mcframe-{os.getpid()}-{name}" for name in _ADDRESSES}
    with ExitStack() as stack:
        for name in namespaces.values():
            _ip("netns", "add", name)
            stack.callback(_remove, name)
        first, second = namespaces.values()
        _ip("-n", first, "link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns", second)
        for host, name in namespaces.items():
            _ip("-n", name, "address", "add", f"{_ADDRESSES[host]}/30", "dev", INTERFACE)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", INTERFACE, "up")
        hosts = TwoHosts(folder, namespaces)
        _configure_ssh(folder)
        for host in namespaces:
            stack.callback(_stop, _start_server(hosts, host))
        for host in namespaces:
            _await_server(hosts, host)
        yield hosts


def _remove(namespace: str) -> None:
    """Kill the processes of a namespace, and remove it."""
    found = subprocess.run([_program("ip"), "netns", "pids", namespace], capture_output=True, text=True)
    for pid in found.stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), 9)
    _ip("netns", "delete", namespace)


def _configure_ssh(folder: Path) -> None:
    """Write keys, the configuration of servers and clients, and a client that reads it."""
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True, capture_output=True
        )
    host_key = (folder / "host.pub").read_text("utf-8").rsplit(" ", 1)[0]
    known = "".join(f"{name},{address} {host_key}\n" for name, address in _ADDRESSES.items())
    (folder / "known_hosts").write_text(known, "utf-8")
    client = [
        f"IdentityFile {folder / 'user'}", "IdentitiesOnly yes", "BatchMode yes", "IdentityAgent none",
        f"UserKnownHostsFile {folder / 'known_hosts'}", "StrictHostKeyChecking yes",
    ]  # fmt: skip
    for name, address in _ADDRESSES.items():
        client += [f"Host {name}", f"    HostName {address}", "    User root"]
    (folder / "client.conf").write_text("\n".join(client) + "\n", "utf-8")
    program = folder / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {_program("ssh")} -F {folder / "client.conf"} "$@"\n', "utf-8")
    program.chmod(0o755)


def _start_server(hosts: TwoHosts, host: str) -> subprocess.Popen[bytes]:
    folder = hosts.folder
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd's empty folder, which its service would create
    lines = [
        f"ListenAddress {_ADDRESSES[host]}:22", f"HostKey {folder / 'host'}", "PidFile none", "UsePAM no",
        f"AuthorizedKeysFile {folder / 'user.pub'}", "StrictModes no", "PasswordAuthentication no",
        "PermitRootLogin prohibit-password",
    ]  # fmt: skip
    file = folder / f"{host}.conf"
    file.write_text("\n".join(lines) + "\n", "utf-8")
    server = [str(_program("sshd")), "-D", "-e", "-f", str(file)]
    log = (folder / f"{host}.log").open("wb")
    return subprocess.Popen(hosts.on(host, server), stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def _await_server(hosts: TwoHosts, host: str) -> None:
    until = time.monotonic() + _WAIT_S
    command = hosts.on(host, ["ssh", "-F", str(hosts.folder / "client.conf"), host, "true"])
    while (done := subprocess.run(command, capture_output=True, text=True)).returncode:
        log = (hosts.folder / f"{host}.log").read_text("utf-8")
        assert time.monotonic() < until, f"{socket.gethostname()} cannot reach {host}: {done.stderr}\n{log}"
        time.sleep(0.2)


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    server.wait(timeout=_WAIT_S)

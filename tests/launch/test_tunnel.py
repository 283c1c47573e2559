"""Tunnels through a real sshd: ports, refusals as messages, and what is left behind when a process is killed."""

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from prolu_tune.errors import InputError, SurroundingsError
from prolu_tune.launch.cluster_file import read_cluster_file
from prolu_tune.launch.find import named_cluster
from prolu_tune.launch.tunnel import KNOWN_HOSTS, Tunnel, login_error

from .conftest import Head, free_port


@pytest.fixture
def server() -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello from the head")

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_a_port_of_the_head_answers_here_and_nowhere_but_on_loopback(head: Head, tmp_path: Path, server: int) -> None:
    cluster = read_cluster_file(head.cluster(tmp_path))
    with Tunnel(cluster, "127.0.0.1", [server]) as tunnel:
        assert tunnel.alive
        assert urllib.request.urlopen(tunnel.url(server), timeout=10).read() == b"hello from the head"
        listening = subprocess.run(["ss", "-ltn"], capture_output=True, text=True, check=False).stdout
        assert not [line for line in listening.splitlines() if f":{tunnel.local(server)} " in line and "127.0.0.1" not in line]
    assert not tunnel.alive


def test_the_heads_key_is_remembered_and_another_one_refused_with_the_command_that_forgets_it(
    head: Head, tmp_path: Path
) -> None:
    cluster = read_cluster_file(head.cluster(tmp_path))
    Tunnel(cluster, "127.0.0.1", []).close()
    known = KNOWN_HOSTS.expanduser()
    found = subprocess.run(["ssh-keygen", "-F", f"[127.0.0.1]:{head.port}", "-f", str(known)], capture_output=True, check=False)
    assert found.returncode == 0 and b"ed25519" in found.stdout
    known.write_text(f"[127.0.0.1]:{head.port} {head.stranger.with_suffix('.pub').read_text()}")
    with pytest.raises(InputError, match="another host key") as refused:
        Tunnel(cluster, "127.0.0.1", [])
    command = str(refused.value).rpartition(": ")[2].replace("'", "").split()
    subprocess.run(command, check=True, capture_output=True)
    Tunnel(cluster, "127.0.0.1", []).close()


def test_a_key_that_the_head_does_not_know_is_named(head: Head, tmp_path: Path) -> None:
    cluster = read_cluster_file(head.cluster(tmp_path, key=head.stranger))
    with pytest.raises(InputError, match=r"does not accept the key .*stranger; check auth\.ssh_user"):
        Tunnel(cluster, "127.0.0.1", [])


def test_a_cluster_that_is_gone_says_how_to_bring_it_up(head: Head, tmp_path: Path) -> None:
    path = head.cluster(tmp_path, ssh_port=free_port())
    with pytest.raises(SurroundingsError, match=rf"does not answer.*Connection refused.*ray up {path}"):
        Tunnel(named_cluster(path).cluster or pytest.fail("no cluster"), "127.0.0.1", [])


def test_messages_of_ssh_become_ours(head: Head, tmp_path: Path) -> None:
    cluster = read_cluster_file(head.cluster(tmp_path))
    for told, kind, words in (
        ("ssh: Could not resolve hostname h: Name or service not known", SurroundingsError, "does not answer"),
        ("Permission denied (publickey).", InputError, "does not accept"),
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @", InputError, "ssh-keygen -R"),
    ):
        error = login_error(cluster, "h", [told])
        assert type(error) is kind and words in str(error)


def test_a_killed_process_leaves_no_tunnel_behind(head: Head, tmp_path: Path, server: int) -> None:
    code = (
        "import sys, time, pathlib; from prolu_tune.launch.cluster_file import read_cluster_file;"
        "from prolu_tune.launch.tunnel import Tunnel;"
        f"t = Tunnel(read_cluster_file(pathlib.Path({str(head.cluster(tmp_path))!r})), '127.0.0.1', [{server}]);"
        "print(t._process.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ssh = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _alive(ssh):
        time.sleep(0.1)
    assert not _alive(ssh)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (OSError, IndexError):
        return False

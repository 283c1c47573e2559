"""The proxy against a small server that counts what reaches it."""

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from torture import proxy
from torture.proxy import FaultyProxy


class Server(ThreadingHTTPServer):
    """Answers every POST with what it got."""

    got: list[bytes]


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Server)
        self.server.got.append(body)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), _Handler)
    made.got = []
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def _post(through: FaultyProxy, body: bytes) -> bytes:
    request = urllib.request.Request(f"http://127.0.0.1:{through.port}/x", data=body, method="POST")
    with urllib.request.urlopen(request, timeout=10) as reply:
        return reply.read()


def test_without_faults_every_request_arrives_and_every_reply_comes_back(server: Server) -> None:
    through = FaultyProxy(server.server_address[1], seed=0)
    bodies = [b"", b"a", bytes(200_000)]
    assert [_post(through, body) for body in bodies] == bodies == server.got
    through.close()


@pytest.mark.parametrize(("fault", "arrives"), [("refused", 0), ("request lost", 0), ("500", 0), ("reply lost", 1)])
def test_each_fault_is_what_it_says(fault: str, arrives: int, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "FAULTS", (fault,))
    through = FaultyProxy(server.server_address[1], seed=0)
    through.share = 1.0
    with pytest.raises(OSError):
        _post(through, b"body")
    assert len(server.got) == arrives
    assert through.counts == {fault: 1}
    through.share = 0.0
    assert _post(through, b"again") == b"again"
    through.away = True
    with pytest.raises(OSError):
        _post(through, b"away")
    through.close()

"""A proxy in front of an MLflow server that loses, delays and refuses requests, and loses replies."""

import asyncio
import contextlib
import random
import threading
from collections import Counter

REPLY_500 = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
FAULTS = ("refused", "request lost", "delayed", "500", "reply lost")


class FaultyProxy:
    """Listens on a port of 127.0.0.1 and passes one request per connection on; what goes wrong is drawn from a seed."""

    def __init__(self, upstream: int, *, seed: int) -> None:
        """Starts at once, without faults.

        Args:
            upstream: port of the server on 127.0.0.1.
            seed: of the draws.
        """
        self.share = 0.0
        """Share of the requests that meet a fault."""
        self.away = False
        """Refuses everything, as a server that is gone."""
        self.counts: Counter[str] = Counter()
        self._upstream = upstream
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait()

    def close(self) -> None:
        """Stops listening."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = server.sockets[0].getsockname()[1]
        ready.set()
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._pass_on(reader, writer)
        writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault = self._fault()
        self.counts[fault] += 1
        if fault == "refused":
            return
        request = await _message(reader)
        if fault == "request lost":
            return
        if fault == "500":
            writer.write(REPLY_500)
            await writer.drain()
            return
        if fault == "delayed":
            await asyncio.sleep(self._random.uniform(0.5, 4.0))
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        # One request per connection, so that the end of the reply is the end of the stream.
        head, _, body = request.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        up_writer.write(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body)
        await up_writer.drain()
        reply = await up_reader.read(-1)
        up_writer.close()
        if fault != "reply lost":
            writer.write(reply)
            await writer.drain()

    def _fault(self) -> str:
        if self.away:
            return "refused"
        return self._random.choice(FAULTS) if self._random.random() < self.share else "passed"


async def _message(reader: asyncio.StreamReader) -> bytes:
    """Returns a whole HTTP request: head and the body of the length it names."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
        if line.lower().startswith(b"transfer-encoding:"):
            raise NotImplementedError("chunked requests")
    return head + await reader.readexactly(length)

"""A file that the code under test has opened for writing on the fake disk."""

import os
from typing import TYPE_CHECKING, Any

from simulator.clock import Killed, current_process

if TYPE_CHECKING:
    from simulator.disk import Disk

BUFFER_BYTES = 8192


class SimFile:
    """A file opened for writing, with the buffer that Python's own has: gone when its process is killed."""

    def __init__(self, disk: "Disk", descriptor: int, *, text: bool, raw: bool, name: str) -> None:
        self._disk = disk
        self.descriptor = descriptor
        self.buffer = bytearray()
        self.closed = False
        self.name = name
        self._text = text
        self._raw = raw
        disk._files[descriptor] = self

    def write(self, data: Any) -> int:
        """Adds to the buffer; a full one goes to the operating system."""
        self.buffer += data.encode() if isinstance(data, str) else bytes(data)
        if self._raw:
            try:
                self.flush()
            finally:
                self.buffer.clear()  # what could not be written is the caller's again
        elif len(self.buffer) > BUFFER_BYTES:
            self.flush()
        return len(data)

    def flush(self) -> None:
        """Empties the buffer."""
        if self.closed:
            raise Killed
        if self.buffer:
            self._disk.write(self)

    def fileno(self) -> int:
        """Returns the real descriptor."""
        return self.descriptor

    def read(self) -> Any:
        """Returns the rest of the file."""
        data = bytearray()
        while part := os.read(self.descriptor, 1 << 16):
            data += part
        return data.decode() if self._text else bytes(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Moves to a place."""
        self.flush()
        return os.lseek(self.descriptor, offset, whence)

    def tell(self) -> int:
        """Returns the place."""
        return os.lseek(self.descriptor, 0, os.SEEK_CUR) + len(self.buffer)

    def truncate(self, size: int | None = None) -> int:
        """Cuts the file."""
        self.flush()
        size = self.tell() if size is None else size
        self._disk.truncate(self, size)
        return size

    def close(self) -> None:
        """Empties the buffer and closes; an error while emptying comes through, the descriptor is closed all the same."""
        if self.closed:
            return
        process = current_process()
        if process is not None and not process.alive:
            return  # the kernel closes it; see Disk.drop
        try:
            self.flush()
        finally:
            if process is None or process.alive:
                self.closed = True
                self._disk.close(self.descriptor)

    def __enter__(self) -> "SimFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

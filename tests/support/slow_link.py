"""`slow_link.py PORT`: standard input and output to a port of this machine and back, 8 MB a second at most."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

PIECE = 64 << 10
PER_SECOND = 8e6


def _back(link: socket.socket) -> None:
    while data := link.recv(PIECE):
        os.write(1, data)
    os._exit(0)


if __name__ == "__main__":
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as link:
        threading.Thread(target=_back, args=(link,), daemon=True).start()
        while sent := os.read(0, PIECE):
            link.sendall(sent)
            time.sleep(len(sent) / PER_SECOND)

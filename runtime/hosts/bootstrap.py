"""The first thing that runs on another machine: text for `exec`, which reads the package from standard input.

It is sent before anything of packlight is there, so it uses the standard library alone and is no module there. Behind
it on standard input come eight bytes, the length, and the zipapp. Standard output carries answers and nothing else.
"""

import os
import shutil
import sys
import tempfile
import traceback
import typing

if typing.TYPE_CHECKING:
    import io


def _start() -> int:
    reading = typing.cast("io.BufferedReader", sys.stdin.buffer)
    writing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not garble the answers
    room = tempfile.mkdtemp(prefix="packlight-")
    try:
        path = os.path.join(room, "packlight-runtime.pyz")  # noqa: PTH118
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(reading.read(int.from_bytes(reading.read(8), "big")))
        sys.path.insert(0, path)
        from runtime.hosts.agent import serve

        return serve(reading, writing)
    finally:
        shutil.rmtree(room, ignore_errors=True)


if __name__ == "__main__":
    status = 1
    try:
        status = _start()
    except KeyboardInterrupt:
        pass
    except BaseException:  # noqa: BLE001  it is said, and this process ends
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)  # and not sys.exit, which waits for a thread that may still read

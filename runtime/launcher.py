"""Start a command inside a memory cap: `python -c TEXT METHOD ARGUMENT COMMAND…`, TEXT being this, never imported.

The command replaces this process only after the cap holds, so that every byte of it is counted, the
interpreter's own included. METHOD is "join" (ARGUMENT: a cgroup.procs file) or the name of a limit of the
`resource` module (ARGUMENT: bytes).
"""

import os
import sys

if __name__ == "__main__":
    method, argument, *command = sys.argv[1:]
    if method == "join":
        with open(argument, "w", encoding="ascii") as procs:  # noqa: PTH123 - pathlib would cost memory and time
            procs.write(str(os.getpid()))
    else:
        import resource

        resource.setrlimit(getattr(resource, method), (int(argument), int(argument)))
    os.execv(command[0], command)

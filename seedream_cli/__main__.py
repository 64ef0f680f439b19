"""The way in: `--version` is answered before anything heavy is imported."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        from . import __version__

        # Nobody may be listening: a closed standard output is None.
        if sys.stdout is not None:
            try:
                sys.stdout.write(f"seedream {__version__}\n")
                sys.stdout.flush()
            except OSError:
                from .cli.app import main as run

                # It says what is wrong with standard output.
                sys.exit(run(["--version"]))
        return
    # Loading makes no garbage. A run that lasts looks for it again, see `engine`.
    gc.disable()
    try:
        from .cli.app import main as run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        # While everything was still being loaded; later ones are told what became of what was sent.
        code = 130
    except (MemoryError, ImportError, OSError, RuntimeError, SystemError) as error:
        code = _say_short(error)
    # Nor is there any use in looking for it at the end, which takes longer than all the rest of leaving.
    gc.freeze()
    sys.exit(code)


def _say_short(error: Exception) -> int:
    """Not even the words for it could be loaded, or the program itself; any other error is raised again."""
    import os

    try:
        from .storage.system_limits import lack_of

        lack = lack_of(error)
    except (MemoryError, ImportError, OSError, SystemError):
        lack = "out of memory or of open files (see ulimit -v and ulimit -n)"
    if not lack:
        raise error
    os.write(2, f"error: {lack}\n  hint: seedream history tells what was sent\n".encode())
    return 74


if __name__ == "__main__":
    main()

"""The entry point. `--version` is answered before anything heavy is imported."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        from . import __version__

        # A closed standard output is None.
        if sys.stdout is not None:
            try:
                sys.stdout.write(f"seedream {__version__}\n")
                sys.stdout.flush()
            except OSError:
                from .cli.app import main as run

                # Reports what is wrong with standard output.
                sys.exit(run(["--version"]))
        return
    # Imports make no garbage; `engine` enables collection again for long runs.
    gc.disable()
    try:
        from .cli.app import main as run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        # During imports, so nothing was sent.
        code = 130
    except (MemoryError, ImportError, OSError, RuntimeError, SystemError) as error:
        code = _report_lack(error)
        # A last collection at exit would take longer than the rest of it.
    gc.freeze()
    sys.exit(code)


def _report_lack(error: Exception) -> int:
    """Report a lack of memory or file descriptors without importing more; any other error is raised again."""
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

"""The way in: `--version` and completions are answered before anything heavy is imported."""

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
                from .cli import main as run

                # It says what is wrong with standard output.
                sys.exit(run(["--version"]))
        return
    if sys.argv[1:2] == ["--complete"] and len(sys.argv) > 2:
        # A shell asks at every Tab: the command line itself would take too long to load.
        from .completion import respond

        if sys.stdout is None:
            return
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
        sys.stdout.write(respond(sys.argv[2], sys.argv[3:]))
        return
    # Loading makes no garbage. A run that lasts looks for it again, see `engine`.
    gc.disable()
    try:
        from .cli import main as run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        # While everything was still being loaded; later ones are told what became of what was sent.
        code = 130
    # Nor is there any use in looking for it at the end, which takes longer than all the rest of leaving.
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    main()

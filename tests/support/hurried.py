"""The command with a clock that does not wait, for tests of what is tried again: this file, run with the arguments."""

from __future__ import annotations


def hurry() -> None:
    """Let whoever sleeps go on at once, in this process."""
    from seedream_cli.network.policy import Clock

    sleep = Clock.sleep

    async def give_way(self: Clock, seconds: float) -> None:
        await sleep(self, 0)

    Clock.sleep = give_way  # type: ignore[method-assign]


if __name__ == "__main__":
    from seedream_cli.__main__ import main

    hurry()
    main()

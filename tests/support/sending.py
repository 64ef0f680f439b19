"""Calls sent as the engine sends them, step by step, with what each step did written down."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from seedream_cli.errors import SeedreamError
from seedream_cli.network.client import ProviderClient
from seedream_cli.network.outcome import Answered
from seedream_cli.providers.contract import Call, Reply


@dataclass
class Sent:
    """What a call came to. `ambiguous` counts earlier attempts that may have been billed."""

    value: Any
    attempts: int
    provider_s: float
    reply: Reply
    ambiguous: int = 0


async def send(
    client: ProviderClient,
    call: Call,
    read: Callable[[Reply], Any],
    on_event: Callable[[dict[str, Any]], None] | None = None,
    *,
    reply_file: Any = None,
    gate: Any = None,
    watch: Any = None,
    images: int = 1,
    waiter: Any = None,
) -> Sent:
    """Send until answered. `gate` is asked between the connection and the first byte, `watch` learns of each step."""
    attempts, ambiguous = client.attempts(call, images), 0
    try:
        while True:
            async with attempts.turn(waiter):
                _stage(watch, "connecting")
                exchange = client.open(call, reply_file)
                try:
                    async with exchange:
                        if exchange.is_open:
                            asked = gate(attempts.number) if gate else None
                            if inspect.isawaitable(asked):
                                await asked
                            _stage(watch, "sent")
                            await exchange.send()
                        if exchange.has_answer:
                            _stage(watch, "receiving")
                        outcome = await (
                            exchange.receive_events(read, on_event) if on_event else exchange.receive(read)
                        )
                except asyncio.CancelledError:
                    if exchange.is_unfinished and watch:
                        watch.unsent()
                    raise
                wait_s = attempts.wait_after(outcome)
            if isinstance(outcome, Answered):
                return Sent(outcome.value, attempts.number, outcome.seconds, outcome.reply, ambiguous)
            if wait_s is None or exchange.has_events:
                raise outcome.error
            ambiguous += outcome.error.billed == "unknown"
            if watch:
                watch.retrying(wait_s, outcome.error, attempts.number)
            if waiter:
                waiter.step_aside()
            await client._clock.sleep(wait_s)
    except SeedreamError as error:
        verdict = attempts.verdict(error)
        raise verdict from verdict.__cause__


def _stage(watch: Any, name: str) -> None:
    if watch:
        watch.stage(name)

"""The commands that lead on from where a request stopped, for the hint of its error."""

from __future__ import annotations

import shlex

from ..errors import LinkError, SeedreamError
from ..providers.base_url import full_url
from ..text import clean
from .plan import Route
from .state import RunningJob


def rescue(running: RunningJob) -> str:
    """The command that saves what is paid for and not here."""
    return "run the same command again" if running.context.is_resumable else f"seedream recover {running.job.id}"


def rescue_image(running: RunningJob, error: SeedreamError) -> str:
    """As `rescue`; and where trying again may not help, the command that shows the link."""
    final = isinstance(error, LinkError) and not error.retryable
    if not final or running.context.is_resumable or not running.recorder.records:
        return rescue(running)
    return f"{rescue(running)} tries again; seedream history show {running.job.id} --links prints the link"


def way_out(running: RunningJob) -> str:
    """The commands that lead out of an unknown outcome."""
    context, job, state = running.context, running.job, running.state
    if state.task_id and job.earlier.barred:
        name, place = job.route.spec.name, shlex.quote(clean(job.earlier.barred, 200))
        give = f"--provider {name} --base-url {place}, or set base_url under [providers.{name}]"
        return f"if that address is yours, name it yourself: {give}"
    if state.is_left_behind or (state.task_id and context.is_resumable):
        return rescue(running)
    if state.task_id:
        return f"later: {_recover_task(state.task_id, job.route)}"
    look = f"look at the provider's usage page for {state.sent_at or context.clock.now():%Y-%m-%d %H:%M} UTC"
    if state.absent_task:
        look = f"{_recover_task(state.absent_task, job.route)} asks once more; {look}"
    if not running.recorder.records:
        return look if job.fetches else f"{look}; the same command sends it once more, and pays once more"
    resolve = f"{look}, then seedream history resolve {job.id} --paid or --unpaid"
    came = state.ready is not None or state.reply is not None
    if came and not (context.is_resumable or job.fetches):
        resolve = f"seedream recover {job.id} reads again what came; {resolve}"
    if job.fetches and not context.is_resumable:
        # Saving what was paid for sends nothing anew, and so does no command that only does that.
        return resolve
    again = " with --only unknown --retry-ambiguous" if context.is_resumable else ""
    return f"{resolve}; the same command{again} sends it once more, and pays once more"


def _recover_task(task_id: str, route: Route) -> str:
    """The command that asks after a task, with the provider, and its address where it is not its own: what is written
    down of that counts for nothing.
    """
    is_own = route.base_url == full_url(route.spec) if route.spec.base_url else False
    address = "" if is_own else f" --base-url {shlex.quote(route.base_url)}"
    return f"seedream recover --task {shlex.quote(task_id)} -p {route.spec.name}{address}"

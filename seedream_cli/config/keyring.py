"""The system's keyring, used in a child process that is killed when it hangs."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Literal

SERVICE = "seedream"
"""The service name of our keys in the keyring."""

KEYRING_S = 5.0
"""Seconds: a locked keyring may wait for a password prompt that nobody answers."""


# A child process can be killed when it hangs, and what a broken back-end raises or prints does not reach the user.
# The key goes through pipes: arguments are visible in the process list. A back-end that stores nothing is found out
# by reading the key back.
_CHILD = """
import json, sys
asked = json.load(sys.stdin)
answer = {"error": "", "value": None}
try:
    import keyring
    service, user = asked["service"], asked["user"]
    if asked["action"] == "set":
        keyring.set_password(service, user, asked["key"])
        if keyring.get_password(service, user) != asked["key"]:
            answer["error"] = "stores nothing"
    elif asked["action"] == "delete":
        keyring.delete_password(service, user)
    answer["value"] = "" if asked["action"] != "get" else keyring.get_password(service, user)
except BaseException as error:
    answer["error"] = type(error).__name__
json.dump(answer, sys.stdout)
"""


def ask_keyring(action: Literal["get", "set", "delete"], user: str, key: str = "") -> tuple[str | None, str]:
    """Run one keyring action. Returns (value of `get`, else "", and ""), or (None, why it failed). Never raises."""
    if find_spec("keyring") is None:
        return None, 'the system keyring is not used: pip install "seedream[keyring]" adds it'
    asked = json.dumps({"action": action, "service": SERVICE, "user": user, "key": key})
    try:
        # -P: a keyring.py in the working folder is not imported.
        done = subprocess.run(  # noqa: S603 - Python itself, with a constant script
            [sys.executable, "-P", "-c", _CHILD],
            input=asked.encode(),
            capture_output=True,
            timeout=KEYRING_S,
            check=False,
        )
        answer = json.loads(done.stdout)
        value, error = answer["value"], str(answer["error"])
    except subprocess.TimeoutExpired:
        return None, f"the system keyring did not answer in {KEYRING_S:.0f} s"
    except (OSError, ValueError, LookupError, TypeError):
        return None, "the system keyring failed"
    if error:
        return None, f"the system keyring cannot be used ({error})"
    return value, ""

"""Pausing as each generation of the SDK has it."""

from __future__ import annotations

import inspect
import json
from typing import Any

import httpx
from e2b import AsyncSandbox, Sandbox, SandboxQuery, SandboxState

#: Whether `create` takes what is to happen at the timeout; before, a beta of it could pause.
HAS_LIFECYCLE = "lifecycle" in inspect.signature(Sandbox.create).parameters

_PAUSES = {"lifecycle": {"on_timeout": "pause"}} if HAS_LIFECYCLE else {"auto_pause": True}


def create_pausing(**options: Any) -> Sandbox:
    """A sandbox that is paused when its time is up."""
    create = Sandbox.create if HAS_LIFECYCLE else Sandbox.beta_create
    return create(**{**_PAUSES, **options})


async def async_create_pausing(**options: Any) -> AsyncSandbox:
    """`create_pausing` of the asynchronous SDK."""
    create = AsyncSandbox.create if HAS_LIFECYCLE else AsyncSandbox.beta_create
    return await create(**{**_PAUSES, **options})


def pause(sandbox: Sandbox) -> None:
    """Pauses a sandbox that runs. The beta said nothing about success; newer releases do."""
    if hasattr(sandbox, "pause"):
        assert sandbox.pause() is True
    else:
        sandbox.beta_pause()


async def async_pause(sandbox: AsyncSandbox) -> None:
    """`pause` of the asynchronous SDK."""
    if hasattr(sandbox, "pause"):
        assert await sandbox.pause() is True
    else:
        await sandbox.beta_pause()


def is_paused(sandbox: Sandbox) -> bool:
    """Whether the control plane says so; unlike a request to the sandbox, this wakes nobody."""
    return sandbox.get_info().state == SandboxState.PAUSED


def listed(**query: object) -> list[str]:
    """Ids of all sandboxes that match, over all pages."""
    pages = Sandbox.list(query=SandboxQuery(**query))
    ids: list[str] = []
    while pages.has_next:
        ids += [info.sandbox_id for info in pages.next_items()]
    return ids


def events(api: httpx.Client, sandbox: Sandbox, kind: str) -> list[dict[str, str]]:
    """Lines of this kind that the node has written to the sandbox's log, oldest first."""
    answer = api.get(f"/sandboxes/{sandbox.sandbox_id}/logs")
    lines = [json.loads(log["line"]) for log in answer.json()["logs"]]
    return [line for line in lines if line.get("event_type") == kind]

"""What the API's log routes say of a sandbox, and what they do not."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from e2b import Sandbox

from support.sdk import newest
from support.wait import wait_for

pytestmark = newest


# Rules: LOG-1, LOG-2
@pytest.mark.parametrize("version", ["", "/v2"])
def test_processes_are_logged_and_what_they_print_is_not(
    api: httpx.Client, create: Callable[..., Sandbox], version: str
) -> None:
    sandbox = create()
    # Printed, but nowhere in the command.
    script = "echo hidden$((6 * 111)); echo oops$((6 * 7)) >&2"
    result = sandbox.commands.run(script)
    assert (result.stdout, result.stderr) == ("hidden666\n", "oops42\n")

    def logged() -> str:
        answer = api.get(f"{version}/sandboxes/{sandbox.sandbox_id}/logs")
        assert answer.status_code == 200
        return answer.text

    wait_for("the end of the process", lambda: "process_end" in logged())
    assert "process_start" in logged()
    assert "hidden666" not in logged()
    assert "oops42" not in logged()

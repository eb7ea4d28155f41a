"""Templates with the Python SDK: built, watched, listed, used and deleted."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timezone

import httpx
import pytest
from dateutil import parser
from e2b import AsyncSandbox, AsyncTemplate, BuildException, Sandbox, Template
from e2b.template.logger import LogEntryEnd, LogEntryStart

from support.sdk import needs, since
from support.templates import BUILD_SECONDS, Builds, Steps, step
from support.wait import equals, wait_for

Create = Callable[..., Sandbox]

LEVELS = {"debug", "info", "warn", "error"}


def _time(text: str) -> datetime:
    return parser.isoparse(text)


def test_a_sandbox_has_what_the_build_made(build: Builds, create: Create) -> None:
    built = build(Template().from_base_image().run_cmd("echo made > /home/user/made"))
    assert re.fullmatch(r"[a-z0-9]{20}", built.template_id)
    for reference in (built.name, built.template_id, f"{built.name}:default"):
        sandbox = create(template=reference)
        assert sandbox.files.read("/home/user/made") == "made\n"
        assert sandbox.get_info().template_id == built.template_id
    assert sandbox.commands.run("whoami; pwd").stdout == "user\n/home/user\n"
    assert sandbox.commands.run("sudo whoami").stdout == "root\n"
    assert sandbox.commands.run("echo $E2B_TEMPLATE_ID").stdout.strip() == built.template_id


def test_a_sandbox_of_one_build_does_not_change_another(build: Builds, create: Create) -> None:
    built = build(Template().from_base_image().run_cmd("echo built > /home/user/file"))
    one, two = create(template=built.name), create(template=built.name)
    one.files.write("/home/user/file", "of one")
    one.commands.run("sudo rm -rf /etc/skel")
    assert two.files.read("/home/user/file") == "built\n"
    assert create(template=built.name).files.read("/home/user/file") == "built\n"
    assert create(template=built.name).files.exists("/etc/skel")


def test_nothing_but_a_base_is_a_template(build: Builds, create: Create) -> None:
    built = build(Template().from_template("base"))
    assert create(template=built.name).commands.run("whoami").stdout == "user\n"


def test_logs_are_streamed(build: Builds) -> None:
    template = Template().from_base_image().run_cmd("echo hello; echo oops >&2")
    built = build(template, skip_cache=True)
    assert isinstance(built.logs[0], LogEntryStart)
    assert isinstance(built.logs[-1], LogEntryEnd)
    assert {entry.level for entry in built.logs} <= LEVELS
    ours = built.logs[1:-1]
    assert all(isinstance(entry.timestamp, datetime) and entry.message for entry in ours)
    assert built.said(r"^\[base\] FROM ")
    assert built.said(r"^\[builder \d+/\d+\] RUN echo hello")
    assert built.said(r"^\[builder \d+/\d+\] \[stdout\]: hello$")
    assert built.said(r"^\[builder \d+/\d+\] \[stderr\]: oops$")
    assert built.said(r"^Build finished")
    order = [built.messages.index(built.said(text)[0]) for text in ("FROM ", "RUN ", "finished")]
    assert order == sorted(order)


def test_logs_come_while_the_build_goes_on(build: Builds) -> None:
    template = Template().from_base_image()
    wait = "until [ -e /tmp/never ]; do sleep 1; done"
    built = build.start(template.run_cmd(f"echo now-it-runs; {wait}", user="root"))
    build.until(built, "[stdout]: now-it-runs")
    assert build.status(built)["status"] == "building"
    build.cancel(built)
    assert build.over(built)["status"] == "error"


@since("2.63.0", "the whole log, beyond the last page")
def test_a_long_log_comes_in_pages_and_whole(build: Builds) -> None:
    built = build(Template().from_base_image().run_cmd("seq -f 'line %g.' 350"), skip_cache=True)
    lines = built.said(r"\[stdout\]: line \d+\.$")
    assert [re.findall(r"\d+(?=\.$)", line)[0] for line in lines] == [
        str(number) for number in range(1, 351)
    ]
    first = build.status(built)
    assert len(first["logEntries"]) == 100
    everything, offset = [], 0
    while page := build.status(built, logsOffset=offset)["logEntries"]:
        everything += page
        offset += len(page)
    assert everything[:100] == first["logEntries"]
    assert [entry["message"] for entry in everything] == [
        message for message in built.messages if message in {e["message"] for e in everything}
    ]
    times = [_time(entry["timestamp"]) for entry in everything]
    assert times == sorted(times)
    assert build.status(built, logsOffset=offset)["logEntries"] == []
    assert build.status(built, logsOffset=offset + 1000)["logEntries"] == []
    assert build.status(built, logsOffset=5, limit=3)["logEntries"] == everything[5:8]
    assert [e for e in everything if e["level"] == "error"] == (
        build.status(built, level="error")["logEntries"]
    )


def test_the_other_route_for_logs(api: httpx.Client, build: Builds) -> None:
    built = build(Template().from_base_image().run_cmd("seq -f 'line %g.' 30"), skip_cache=True)
    path = f"/templates/{built.template_id}/builds/{built.build_id}/logs"
    forward = api.get(path, params={"limit": 100, "direction": "forward"}).json()["logs"]
    messages = [entry["message"] for entry in forward]
    assert any(message.endswith("line 30.") for message in messages)
    assert all(entry["level"] in LEVELS and entry["timestamp"] for entry in forward)
    backward = api.get(path, params={"limit": 5, "direction": "backward"}).json()["logs"]
    assert sorted(entry["message"] for entry in backward) == sorted(messages[-5:])


def test_a_build_in_the_background(build: Builds, create: Create) -> None:
    template = Template().from_base_image().run_cmd("echo slow; sleep 10; touch /home/user/made")
    built = build.start(template, skip_cache=True)
    # Exactly one request: a client that looks at once must see that it has begun.
    assert Template.get_build_status(built.info).status.value == "building"
    seen = wait_for(
        "the build",
        lambda: (
            status
            if (status := Template.get_build_status(built.info, logs_offset=0)).status.value
            not in {"building", "waiting"}
            else None
        ),
        BUILD_SECONDS,
    )
    assert seen.status.value == "ready"
    assert (seen.template_id, seen.build_id) == (built.template_id, built.build_id)
    assert any("slow" in entry.message for entry in seen.log_entries)
    assert seen.logs == []
    assert create(template=built.name).files.exists("/home/user/made")


async def test_the_asynchronous_sdk(build: Builds) -> None:
    name, messages = build.name(), []
    template = AsyncTemplate().from_base_image().run_cmd("echo made > /home/user/made")
    info = await AsyncTemplate.build(
        template, name, on_build_logs=lambda entry: messages.append(entry.message)
    )
    assert any("RUN echo made" in message for message in messages)
    sandbox = await AsyncSandbox.create(template=info.template_id, timeout=60)
    assert await sandbox.files.read("/home/user/made") == "made\n"
    await sandbox.kill()
    with pytest.raises(BuildException, match="7"):
        await AsyncTemplate.build(AsyncTemplate().from_base_image().run_cmd("exit 7"), name)


@needs(Template, "exists")
def test_exists(build: Builds) -> None:
    built = build(Template().from_base_image())
    assert Template.exists(built.name)
    assert Template.exists("base")
    assert not Template.exists(f"{built.name}-not")
    assert Template.alias_exists(built.name)
    assert build.delete(built.name).status_code == 204
    assert not Template.exists(built.name)


def test_processors_and_memory(build: Builds, create: Create, api: httpx.Client) -> None:
    template = Template().from_base_image().run_cmd("true")
    built = build(template, cpu_count=1, memory_mb=512)
    info = create(template=built.name).get_info()
    assert (info.cpu_count, info.memory_mb) == (1, 512)
    # Another build of the same template may have others.
    again = build(template, built.name, cpu_count=4, memory_mb=2048)
    assert again.template_id == built.template_id
    sandbox = create(template=built.name)
    info = sandbox.get_info()
    assert (info.cpu_count, info.memory_mb) == (4, 2048)
    total = int(sandbox.commands.run("awk '/MemTotal/ {print $2}' /proc/meminfo").stdout)
    limits = api.get(f"/sandboxes/{sandbox.sandbox_id}").json()
    assert limits["memoryMB"] == 2048
    assert total > 0


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"cpuCount": 0}, "CPU count must be at least 1"),
        ({"cpuCount": 3}, "CPU count must be 1 or an even number"),
        ({"cpuCount": 34}, "CPU count must be at most 32"),
        ({"cpuCount": 16}, "CPU count can't be higher than 8"),
        ({"memoryMB": 126}, "Memory must be at least 128 MiB"),
        ({"memoryMB": 513}, "Memory must be divisible by 2"),
        ({"memoryMB": 1 << 20}, "Memory can't be higher than 8192 MiB"),
    ],
)
def test_limits(api: httpx.Client, build: Builds, wanted: dict[str, int], message: str) -> None:
    answer = api.post("/v3/templates", json={"name": build.name(), **wanted})
    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] == 400
    assert answer.json()["message"].startswith(message)


def test_limits_with_the_sdk(build: Builds) -> None:
    with pytest.raises(BuildException, match="CPU count must be 1 or an even number"):
        build(Template().from_base_image(), cpu_count=3)


def test_a_new_build_is_for_new_sandboxes(build: Builds, create: Create) -> None:
    first = build(Template().from_base_image().run_cmd("echo 1 > /home/user/version"))
    before = create(template=first.name)
    second = build(Template().from_base_image().run_cmd("echo 2 > /home/user/version"), first.name)
    assert second.template_id == first.template_id
    assert second.build_id != first.build_id
    assert create(template=first.name).files.read("/home/user/version") == "2\n"
    assert before.files.read("/home/user/version") == "1\n"
    # One that fails takes nothing away.
    build.fails(Template().from_base_image().run_cmd("exit 1"), first.name)
    assert create(template=first.name).files.read("/home/user/version") == "2\n"
    # A build can be asked for by its id.
    exact = create(template=f"{first.name}:{first.build_id}")
    assert exact.files.read("/home/user/version") == "1\n"


def test_lists_have_it(api: httpx.Client, build: Builds, create: Create) -> None:
    built = build(Template().from_base_image().run_cmd("true"), cpu_count=2, memory_mb=512)
    again = build(Template().from_base_image().run_cmd("true"), built.name, memory_mb=512)
    for path in ("/templates", "/v2/templates"):
        (mine,) = [item for item in api.get(path).json() if item["templateID"] == built.template_id]
        assert (mine["buildID"], mine["buildStatus"]) == (again.build_id, "ready")
        assert (mine["aliases"], mine["public"]) == ([built.name], False)
        assert [name.rpartition("/")[2] for name in mine["names"]] == [built.name]
        assert (mine["cpuCount"], mine["memoryMB"]) == (2, 512)
        assert (mine["buildCount"], mine["spawnCount"]) == (2, 0)
        assert mine["diskSizeMB"] > 0
        assert mine["lastSpawnedAt"] is None
        assert "createdBy" in mine
        assert re.fullmatch(r"\d+\.\d+\.\d+", mine["envdVersion"])
        assert _time(mine["createdAt"]) <= datetime.now(timezone.utc)
    create(template=built.name)

    path = f"/templates/{built.template_id}"
    equals("how often it was used", lambda: api.get(path).json()["spawnCount"], 1)
    detail = api.get(path).json()
    assert [item["buildID"] for item in detail["builds"]] == [again.build_id, built.build_id]
    assert {item["status"] for item in detail["builds"]} == {"ready"}
    assert detail["aliases"] == [built.name]
    assert detail["lastSpawnedAt"]
    ids = [item["templateID"] for item in api.get("/templates").json()]
    assert ids.index(built.template_id) == len(ids) - 1


def test_it_is_deleted_once_and_not_while_it_is_in_use(build: Builds, create: Create) -> None:
    built = build(Template().from_base_image().run_cmd("touch /home/user/made"))
    sandbox = create(template=built.name)
    refused = build.delete(built.name)
    assert refused.status_code == 400
    assert "because there are running sandboxes using it" in refused.json()["message"]
    sandbox.kill()
    assert build.delete(built.template_id).status_code == 204
    assert build.delete(built.template_id).status_code == 404
    assert build.delete(built.name).status_code == 404
    with pytest.raises(Exception, match=f"template '{built.name}' not found"):
        Sandbox.create(template=built.name)
    # Its name is free again, for another template.
    again = build(Template().from_base_image(), built.name)
    assert again.template_id != built.template_id


def test_unknown_builds(api: httpx.Client, build: Builds) -> None:
    built = build(Template().from_base_image())
    other = "00000000-0000-4000-8000-000000000000"
    path = f"/templates/{built.template_id}/builds"
    answer = api.get(f"{path}/{other}/status")
    assert (answer.status_code, answer.json()["code"]) == (400, 400)
    assert answer.json()["message"] == f"Build '{other}' not found"
    assert api.get(f"{path}/no-uuid/status").status_code == 400
    assert api.post(f"/v2{path}/{other}", json={"fromTemplate": "base"}).status_code == 404
    assert api.post(f"/v2{path}/no-uuid", json={"fromTemplate": "base"}).status_code == 400


def test_a_build_starts_once(steps: Steps, build: Builds) -> None:
    built = steps.register()
    assert build.status(built)["status"] == "waiting"
    assert build.status(built)["logEntries"] == []
    assert steps.begin(built, steps=[step("RUN", "true")]).status_code == 202
    again = steps.begin(built, steps=[step("RUN", "true")])
    assert again.status_code == 400
    assert "not in waiting state" in again.json()["message"]
    assert build.over(built)["status"] == "ready"

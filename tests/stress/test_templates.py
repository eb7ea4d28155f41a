"""Atoll is killed amid builds; and what templates leave on disk, once they are gone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from e2b import Sandbox, Template

from stress.conftest import instance_of, settled
from support import registry as registries
from support.crashes import crash
from support.host import Counts, left_behind
from support.layers import Layers
from support.registry import Registry
from support.stack import Stack
from support.templates import Builds
from support.wait import equals

Count = Callable[[], Counts]

INTERRUPTED = "stopped"


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with registries.session() as running:
        yield running


@pytest.fixture
def client(stack: Stack) -> Iterator[httpx.Client]:
    """One that survives a restart of the API: it keeps no connections."""
    with httpx.Client(
        base_url=os.environ["E2B_API_URL"],
        headers={"X-API-Key": os.environ["E2B_API_KEY"], "Connection": "close"},
        timeout=75,
    ) as client:
        yield client


@pytest.fixture
def build(client: httpx.Client) -> Iterator[Builds]:
    builds = Builds(client)
    yield builds
    builds.clean()


def base() -> Any:
    return Template().from_base_image()


def prune(client: httpx.Client) -> dict[str, Any]:
    answer = client.post("/atoll/templates/prune")
    assert answer.status_code == 200, answer.text
    return answer.json()


def works(name: str, file: str, text: str) -> None:
    sandbox = Sandbox.create(template=name, timeout=60)
    try:
        assert sandbox.files.read(file) == text
    finally:
        sandbox.kill()


def test_a_crash_amid_a_step(stack: Stack, build: Builds, client: httpx.Client) -> None:
    name = build.name()

    def template(last: str) -> Any:
        return base().set_envs({"SALT": name}).run_cmd("echo kept > first").run_cmd(last)

    layers = Layers(stack.data_dir)
    unused = layers.unused()
    built = build.start(template("echo it-runs; sleep 3600"), name)
    build.until(built, "[stdout]: it-runs")
    crash(stack)
    status = build.over(built, seconds=60)
    assert status["status"] == "error"
    assert INTERRUPTED in status["reason"]["message"]
    messages = [entry["message"] for entry in status["logEntries"]]
    assert any("it-runs" in message for message in messages)
    equals("unfinished layers", layers.unfinished, [], seconds=60)
    equals("layers that nothing names", layers.unused, unused, seconds=60)
    # Nothing of it runs on, neither a sandbox nor a process.
    assert client.get("/v2/sandboxes").json() == []
    again = build(template("echo second > last"), name)
    assert again.said(r"^CACHED \[builder \d+/\d+\] RUN echo kept")
    works(name, "/home/user/last", "second\n")


def test_a_crash_amid_an_image(stack: Stack, build: Builds, registry: Registry) -> None:
    template = Template().from_image(registry.push("debian")).run_cmd("echo made > made")
    built = build.start(template, skip_cache=True)
    crash(stack)
    status = build.over(built, seconds=60)
    assert status["status"] == "error"
    assert INTERRUPTED in status["reason"]["message"]
    equals("unfinished layers", Layers(stack.data_dir).unfinished, [], seconds=60)
    build(template, built.name)
    works(built.name, "/home/user/made", "made\n")


@pytest.mark.parametrize("delay", [0.0, 0.2, 0.5, 1.0, 2.0])
def test_a_crash_at_some_moment(stack: Stack, build: Builds, delay: float) -> None:
    """Whenever it comes: the build is done, or it failed and says why; the next one works."""
    name = build.name()
    todo = base().set_envs({"SALT": name})
    for number in range(6):
        todo = todo.run_cmd(f"echo {number} > file-{number}; sleep 0.2")
    built = build.start(todo, name)
    # This spreads where the crash strikes; nothing depends on it.
    time.sleep(delay)
    crash(stack)
    status = build.over(built, seconds=60)
    if status["status"] == "error":
        assert INTERRUPTED in status["reason"]["message"]
    build(todo, name)
    works(name, "/home/user/file-5", "5\n")
    equals("unfinished layers", Layers(stack.data_dir).unfinished, [], seconds=60)


def test_a_stop_amid_a_build_leaves_nothing(stack: Stack, build: Builds) -> None:
    built = build.start(base().run_cmd("echo it-runs; sleep 3600"))
    build.until(built, "[stdout]: it-runs")
    instance = instance_of(stack)
    stack.stop()
    assert left_behind(instance, stack.data_dir) == {}
    stack.start()
    assert build.over(built, seconds=60)["status"] == "error"


def test_a_template_outlives_crashes(stack: Stack, build: Builds) -> None:
    name = build(base().run_cmd("echo made > made")).name
    for _ in range(2):
        crash(stack)
        works(name, "/home/user/made", "made\n")
    assert Template.exists(name)


def test_what_is_deleted_and_pruned_is_gone(
    stack: Stack, build: Builds, client: httpx.Client, registry: Registry
) -> None:
    layers = Layers(stack.data_dir)
    prune(client)
    before = layers.kept()
    names = [
        build(base().run_cmd(f"dd if=/dev/urandom of=f bs=1M count={size}")).name for size in (1, 4)
    ]
    image = Template().from_image(registry.push("busybox-musl")).run_cmd("echo x > x")
    names.append(build(image).name)
    # Results of steps that change nothing have no layers but those of `base`, which stays.
    names.append(build(base().set_workdir("/home/user").run_cmd("true")).name)
    failed = build.fails(base().run_cmd("dd if=/dev/urandom of=f bs=1M count=2").run_cmd("exit 1"))
    # A step that leaves nothing leaves no layer, but its result all the same.
    below = build(Template().from_template(names[0]).run_cmd("touch above").run_cmd("true")).name
    assert layers.kept().size > before.size + (5 << 20)
    # What is in use is not pruned.
    prune(client)
    works(names[2], "/home/user/x", "x\n")
    works(below, "/home/user/above", "")
    for name in [*names, below, failed.built.name]:
        assert build.delete(name).status_code in {204, 404}
    freed = prune(client)
    assert sum(freed["steps"].values()) > 0
    equals("layers and builds", layers.kept, before, seconds=60)
    assert prune(client)["steps"] == {}


@pytest.mark.parametrize("how", ["done", "failed", "cancelled"])
def test_a_build_leaves_nothing_on_the_host(
    build: Builds, client: httpx.Client, counts: Count, how: str
) -> None:
    # Once before counting: what is made for the first build stays, as pools do.
    build(base().run_cmd("true"), skip_cache=True)
    build.clean()
    prune(client)
    before = settled(counts)
    if how == "done":
        build(base().run_cmd("true"), skip_cache=True)
    elif how == "failed":
        build.fails(base().run_cmd("exit 1"), skip_cache=True)
    else:
        built = build.start(base().run_cmd("echo it-runs; sleep 3600"), skip_cache=True)
        build.until(built, "[stdout]: it-runs")
        build.cancel(built)
        build.over(built)
    build.clean()
    prune(client)
    equals("what is on the host", counts, before, seconds=60)

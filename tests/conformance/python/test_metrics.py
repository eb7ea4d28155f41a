"""Resource use of a sandbox, as the SDKs tell it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone

import httpx
import pytest
from e2b import AsyncSandbox, Sandbox

from support import routing
from support.sdk import newest, since
from support.wait import wait_for

MIB = 1 << 20


@pytest.fixture(scope="module")
def sampled(stack: object) -> Iterator[Sandbox]:
    """A sandbox of which there is a sample, and which then takes memory and disk."""
    sandbox = Sandbox.create(timeout=300)
    wait_for("the first sample", sandbox.get_metrics, seconds=30)
    hold = "import time; held = bytearray(100 << 20); time.sleep(600)"
    sandbox.commands.run(f"exec python3 -c '{hold}'", background=True, timeout=0)
    sandbox.commands.run("head -c 200M /dev/urandom > disk; sync disk", timeout=60)
    yield sandbox
    sandbox.kill()


def three_samples(sandbox: Sandbox) -> list:
    def three() -> list | None:
        samples = sandbox.get_metrics()
        return samples if len(samples) >= 3 else None

    return wait_for("three samples", three, seconds=60)


# Rules: METRICS-5
async def test_samples_say_what_the_sandbox_has(sampled: Sandbox) -> None:
    samples = sampled.get_metrics()
    same = await (await AsyncSandbox.connect(sampled.sandbox_id)).get_metrics()
    assert same[0] == samples[0]
    assert Sandbox.get_metrics(sampled.sandbox_id)[0] == samples[0]
    sample = samples[0]
    run = sampled.commands.run
    assert sample.cpu_count == int(run("nproc").stdout)
    assert 0 <= sample.cpu_used_pct <= 100
    assert 0 < sample.mem_used <= sample.mem_total
    assert 0 <= getattr(sample, "mem_cache", 0) <= sample.mem_total, "older SDKs leave it out"
    assert 0 < sample.disk_used < sample.disk_total
    age = datetime.now(timezone.utc) - sample.timestamp.astimezone(timezone.utc)
    assert timedelta(0) <= age < timedelta(minutes=5)


# Rules: METRICS-5
@newest
def test_samples_go_along_with_time(sampled: Sandbox) -> None:
    times = [sample.timestamp.astimezone(timezone.utc) for sample in three_samples(sampled)]
    assert times == sorted(set(times))


# Rules: METRICS-5
@since("2.25.0", "ranges in seconds, as the API has them")
def test_samples_of_a_range(sampled: Sandbox) -> None:
    samples = three_samples(sampled)
    middle = samples[1].timestamp.astimezone(timezone.utc)
    assert [s.timestamp for s in sampled.get_metrics(start=middle)][:1] == [samples[1].timestamp]
    until = [sample.timestamp for sample in sampled.get_metrics(end=middle)]
    assert until == [sample.timestamp for sample in samples[:2]]
    assert sampled.get_metrics(end=middle - timedelta(hours=1)) == []
    with pytest.raises(Exception, match="Invalid time range"):
        sampled.get_metrics(start=middle, end=middle - timedelta(minutes=1))


# Rules: METRICS-4, METRICS-5
@newest
def test_what_is_used_shows(sampled: Sandbox) -> None:
    def shown() -> bool:
        first, *_, last = three_samples(sampled)
        memory = last.mem_used - first.mem_used
        disk = last.disk_used - first.disk_used
        return memory > 90 * MIB and disk > 190 * MIB

    wait_for("memory and disk to show", shown, seconds=60)


def guest_metrics(client: httpx.Client) -> dict:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return answer.json()


# Rules: METRICS-1, METRICS-2, METRICS-3, METRICS-4
@newest
def test_envds_own_measurements(create: Callable[..., Sandbox]) -> None:
    sandbox = create(timeout=120)
    with routing.client(sandbox.sandbox_id, 49983) as client:
        assert client.get("/metrics").status_code == 401
        client.headers["X-Access-Token"] = sandbox._envd_access_token or ""
        samples = [guest_metrics(client) for _ in range(3)]
    numbers = {"cpu_count", "mem_total_mib", "mem_used_mib", "mem_total", "mem_used", "mem_cache"}
    assert numbers | {"ts", "cpu_used_pct", "disk_used", "disk_total"} <= set(samples[0])
    for metrics in samples:
        assert abs(metrics["ts"] - time.time()) < 60
        assert 0 <= metrics["cpu_used_pct"] <= 100
        assert 0 < metrics["mem_used"] <= metrics["mem_total"]
        assert metrics["mem_total_mib"] == metrics["mem_total"] >> 20
        assert metrics["mem_used_mib"] == metrics["mem_used"] >> 20
        assert round(metrics["cpu_used_pct"], 2) == metrics["cpu_used_pct"]
        # A machine has more.
        assert metrics["mem_total"] == sandbox.get_info().memory_mb * MIB
    run = sandbox.commands.run
    size, free = run("df -B1 --output=size,avail / | tail -1").stdout.split()
    assert samples[-1]["disk_total"] == int(size)
    assert abs(samples[-1]["disk_used"] - (int(size) - int(free))) < 64 * MIB


# Rules: ENVS-1, ENVS-2
@newest
def test_envds_variables(create: Callable[..., Sandbox]) -> None:
    sandbox = create(timeout=60, envs={"GREETING": "grüße"})
    with routing.client(sandbox.sandbox_id, 49983) as client:
        assert client.get("/envs").status_code == 401
        client.headers["X-Access-Token"] = sandbox._envd_access_token or ""
        answer = client.get("/envs")
    assert answer.headers["Cache-Control"] == "no-store"
    variables = answer.json()
    assert variables["GREETING"] == "grüße"
    assert variables["E2B_SANDBOX"] == "true"
    assert variables["E2B_SANDBOX_ID"] == sandbox.sandbox_id


# Rules: HEALTH-1, HEALTH-2
def test_health_before_and_after(create: Callable[..., Sandbox]) -> None:
    sandbox = create(timeout=60)
    with routing.client(sandbox.sandbox_id, 49983) as client:
        answer = client.get("/health")
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["Cache-Control"] == "no-store"
        assert sandbox.is_running()
        sandbox.kill()
        assert client.get("/health").status_code == 502
    assert not sandbox.is_running()

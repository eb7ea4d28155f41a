"""Templates that Atoll ships: one command builds each, for every team, and once."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator

import httpx
import pytest
from e2b import Sandbox, SandboxException, Template

from support import paths
from support.sdk import newest
from support.templates import Builds

pytestmark = newest

Create = Callable[..., Sandbox]

#: The smaller one.
NAME = "httpbin"


def add(*names: str, key: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `atoll template add`, perhaps as another team."""
    command = [*(("env", f"E2B_API_KEY={key}") if key else ()), str(paths.ATOLL), "template", "add"]
    return subprocess.run(
        [*command, *names], capture_output=True, text=True, timeout=180, check=False
    )


def adds(*names: str, key: str | None = None) -> str:
    ran = add(*names, key=key)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture
def absent(api: httpx.Client) -> Iterator[str]:
    """The name of a template that is not there, and is gone after the test."""
    builds = Builds(api)
    builds.delete(NAME)
    yield NAME
    for sandbox in api.get("/v2/sandboxes", params={"template": NAME}).json():
        api.delete(f"/sandboxes/{sandbox['sandboxID']}")
    assert builds.delete(NAME).status_code in {204, 404}


def recipes(api: httpx.Client) -> dict[str, str]:
    """The tags that say of which recipe a build is, with the builds."""
    answer = api.get(f"/templates/{NAME}/tags")
    tags = {tag["tag"]: tag["buildID"] for tag in answer.json()}
    assert "default" in tags
    return {tag: build for tag, build in tags.items() if tag.startswith("recipe-")}


def test_it_is_built_once(absent: str, api: httpx.Client, create: Create) -> None:
    assert f"\n{absent} is ready after " in adds(absent)
    assert adds(absent) == f"{absent} is up to date: its recipe has not changed.\n"
    template = api.get(f"/templates/{absent}").json()
    assert (template["public"], len(template["builds"])) == (True, 1)
    with create(template=absent, timeout=60) as sandbox:
        said = sandbox.commands.run("curl -sS 'localhost:8080/get?a=1'").stdout
        assert '"a": [' in said


def test_another_recipe_is_built_again_from_its_first_new_step(
    absent: str, api: httpx.Client
) -> None:
    adds(absent)
    ((current, build),) = recipes(api).items()
    # As if this build were of an older one.
    body = {"target": f"{absent}:{current}", "tags": ["recipe-0123456789abcdef"]}
    assert api.post("/templates/tags", json=body).status_code == 201
    body = {"name": absent, "tags": [current]}
    assert api.request("DELETE", "/templates/tags", json=body).status_code == 204
    said = adds(absent)
    assert re.search(r"CACHED \[builder \d/\d\] COPY server.py", said)
    # And nothing is left of the older one's name.
    ((tag, rebuilt),) = recipes(api).items()
    assert (tag, rebuilt != build) == (current, True)
    assert "is up to date" in adds(absent)


def test_every_team_can_use_it_and_none_can_take_its_name(
    absent: str, create: Create, other_team: str, api: httpx.Client
) -> None:
    adds(absent)
    with create(template=absent, timeout=60, api_key=other_team) as sandbox:
        sandbox.commands.run("curl -fsS localhost:8080/status/200")
    refused = add(absent, key=other_team)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"{absent} is another team's" in refused.stderr
    # One that the team has hidden is shown again.
    assert api.patch(f"/v2/templates/{absent}", json={"public": False}).status_code == 200
    adds(absent)
    assert api.get(f"/templates/aliases/{absent}").json()["public"] is True


def test_no_other_team_gives_it_to_all(absent: str, other_team: str, api: httpx.Client) -> None:
    headers = {"X-API-Key": other_team}
    with httpx.Client(base_url=api.base_url, headers=headers, timeout=75) as theirs:
        assert theirs.post("/v3/templates", json={"name": absent}).status_code == 202
        refused = theirs.patch(f"/templates/{absent}", json={"public": True})
        assert (refused.status_code, "reserved" in refused.text) == (403, True), refused.text
        assert api.get(f"/templates/aliases/{absent}").status_code == 404
        assert theirs.delete(f"/templates/{absent}").status_code == 204


def test_a_create_says_how_a_missing_one_is_built(absent: str, create: Create) -> None:
    command = f"atoll template add {absent}"
    with pytest.raises(SandboxException, match=f"template '{absent}' not found; .* {command}$"):
        create(template=absent)
    # One of the team's own with that name is not there either, and nobody can build that.
    with pytest.raises(SandboxException, match=r"not found$"):
        create(template=f"{absent}-of-mine")


def test_a_name_that_is_no_shipped_template(stack: object) -> None:
    ran = add("nothing")
    assert ran.returncode == 2
    assert "code-interpreter, httpbin" in ran.stderr


def test_a_ready_command_can_tell_a_build_from_a_sandbox(build: Builds, create: Create) -> None:
    ready = 'echo "building: $ATOLL_BUILD" >> /tmp/ready; [ -e /tmp/started ]'
    template = (
        Template()
        .from_template("base")
        .set_start_cmd("touch /tmp/started; exec sleep infinity", ready)
    )
    built = build(template)
    sandbox = create(template=built.name, timeout=60)
    # Where memory is kept, sandboxes go on from the build, and nothing is asked again.
    asked_in = "1" if built.said("go on from the memory") else ""
    assert set(sandbox.files.read("/tmp/ready").splitlines()) == {f"building: {asked_in}"}

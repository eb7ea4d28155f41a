"""Names, tags and visibility: which build a sandbox gets, and who may have it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from e2b import BuildException, Sandbox, Template
from e2b.exceptions import TemplateException

from support.sdk import needs, takes
from support.templates import Builds, Built, Steps, step

Create = Callable[..., Sandbox]

SUPERSEDED = "The build was canceled because it was superseded by a newer one."


def version(number: int) -> Any:
    return Template().from_base_image().run_cmd(f"echo {number} > /home/user/version")


def read(create: Create, reference: str) -> str:
    return create(template=reference).files.read("/home/user/version").strip()


def assigned(name: str) -> dict[str, str]:
    return {tag.tag: tag.build_id for tag in Template.get_tags(name)}


@needs(Template, "get_tags")
def test_tags_of_a_build(build: Builds, create: Create) -> None:
    name = build.name()
    first = build(version(1), f"{name}:v1")
    second = build(version(2), name, tags=["v2", "stable"])
    assert first.template_id == second.template_id
    assert assigned(name) == {
        "v1": first.build_id,
        "v2": second.build_id,
        "stable": second.build_id,
    }
    assert (read(create, f"{name}:v1"), read(create, f"{name}:stable")) == ("1", "2")
    # Nothing was ever built without a tag.
    with pytest.raises(Exception, match=f"tag 'default' does not exist for template '{name}'"):
        create(template=name)
    third = build(version(3), name)
    assert assigned(name)["default"] == third.build_id
    assert read(create, name) == "3"
    with pytest.raises(Exception, match=f"tag 'v9' does not exist for template '{name}'"):
        create(template=f"{name}:v9")
    assert Template.exists(f"{name}:v1")
    assert not Template.exists(f"{name}:v9")


@needs(Template, "assign_tags")
def test_tags_are_assigned_moved_and_removed(build: Builds, create: Create) -> None:
    name = build.name()
    first, second = build(version(1), f"{name}:v1"), build(version(2), name)
    info = Template.assign_tags(f"{name}:v1", ["production", "stable"])
    assert (info.build_id, sorted(info.tags)) == (first.build_id, ["production", "stable"])
    assert read(create, f"{name}:production") == "1"
    assert Template.assign_tags(name, "production").build_id == second.build_id
    assert read(create, f"{name}:production") == "2"
    assert assigned(name)["stable"] == first.build_id
    Template.remove_tags(name, "production")
    Template.remove_tags(name, ["production", "never-there"])
    assert assigned(name) == {
        "v1": first.build_id,
        "stable": first.build_id,
        "default": second.build_id,
    }
    with pytest.raises(Exception, match="tag 'production' does not exist"):
        create(template=f"{name}:production")
    times = [tag.created_at for tag in Template.get_tags(name)]
    assert len(times) == 3 and all(times)


@needs(Template, "assign_tags")
@pytest.mark.parametrize("tag", [":v1", "v1:", "", "a b", "Ümlaut", str(uuid.uuid4())])
def test_bad_tags(build: Builds, tag: str) -> None:
    built = build(Template().from_base_image())
    with pytest.raises(TemplateException, match="400"):
        Template.assign_tags(built.name, [tag])


@needs(Template, "assign_tags")
def test_what_tags_may_be(build: Builds) -> None:
    built = build(Template().from_base_image())
    legal = ["v1", "1.2.3", "a_b-c", f"v1-{uuid.uuid4()}"]
    assert sorted(Template.assign_tags(built.name, [*legal, "v1"]).tags) == sorted(legal)


def test_bad_requests_for_tags(api: httpx.Client, build: Builds) -> None:
    built = build(Template().from_base_image())

    def sent(method: str, **body: Any) -> tuple[int, str]:
        answer = api.request(method, "/templates/tags", json=body)
        return answer.status_code, answer.json()["message"]

    assert sent("POST", target=built.name, tags=[]) == (400, "At least one tag is required")
    assert sent("DELETE", name=built.name, tags=[]) == (400, "At least one tag is required")
    status, message = sent("DELETE", name=built.name, tags=["default"])
    assert (status, message) == (400, "Cannot delete the 'default' tag")
    status, message = sent("DELETE", name=f"{built.name}:v1", tags=["v1"])
    assert status == 400
    assert message == "Template name should not contain a tag, use the 'tags' field instead"
    status, message = sent("POST", target=f"{built.name}:nope", tags=["v1"])
    assert (status, message) == (404, f"Template '{built.name}' with tag 'nope' not found")
    assert sent("POST", target="no-such-template", tags=["v1"])[0] == 404
    assert sent("DELETE", name="no-such-template", tags=["v1"])[0] == 404
    answer = api.post("/templates/tags", json={"target": built.name, "tags": ["v1"]})
    assert (answer.status_code, answer.json()) == (
        201,
        {"tags": ["v1"], "buildID": built.build_id},
    )
    gone = api.request("DELETE", "/templates/tags", json={"name": built.name, "tags": ["v1"]})
    assert (gone.status_code, gone.content) == (204, b"")


@takes(Template.build, "tags")
def test_builds_with_different_tags_go_on_side_by_side(build: Builds, create: Create) -> None:
    name = build.name()
    with ThreadPoolExecutor(4) as pool:
        made = list(
            pool.map(lambda number: build(version(number), f"{name}:v{number}"), range(1, 5))
        )
    assert len({built.template_id for built in made}) == 1
    for number in range(1, 5):
        assert read(create, f"{name}:v{number}") == str(number)


def test_a_newer_build_takes_the_place_of_one_that_runs(build: Builds, create: Create) -> None:
    name = build.name()
    endless = Template().from_base_image().run_cmd("echo begun; sleep 3600")
    older = build.start(endless, name)
    build.until(older, "[stdout]: begun")
    newer = build(version(2), name)
    status = build.over(older)
    assert (status["status"], status["reason"]["message"]) == ("error", SUPERSEDED)
    assert read(create, name) == "2"
    assert newer.template_id == older.template_id


def test_registering_supersedes_what_has_not_begun(
    build: Builds, steps: Steps, create: Create
) -> None:
    older = steps.register()
    newer = steps.register(older.name)
    other = steps.register(older.name, tags=["other"])
    status = build.over(older)
    assert (status["status"], status["reason"]["message"]) == ("error", SUPERSEDED)
    assert build.status(newer)["status"] == "waiting"
    assert build.status(other)["status"] == "waiting"
    assert steps.begin(older, steps=[]).status_code == 400
    for built in (newer, other):
        assert steps.begin(built, steps=[step("RUN", "true")]).status_code == 202
        assert build.over(built)["status"] == "ready"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "Name is required"),
        ({"name": ""}, 400, "Name is required"),
        ({"name": "no good"}, 400, "Invalid name"),
        ({"name": "a/b/c"}, 400, "Invalid"),
        ({"name": "x" * 129}, 400, ""),
        ({"name": "somebody-else/name"}, 400, "namespace 'somebody-else' must match your team"),
        ({"name": "fine", "tags": ["no good"]}, 400, "Invalid tag"),
        ({"name": "fine:no good"}, 400, "Invalid"),
        ({"name": "fine", "tags": [str(uuid.uuid4())]}, 400, "Invalid tag"),
        ({"name": "fine", "tags": "v1"}, 400, ""),
        ({"name": 7}, 400, ""),
    ],
)
def test_bad_names(api: httpx.Client, body: dict[str, Any], status: int, message: str) -> None:
    answer = api.post("/v3/templates", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["code"] == status
    assert message in answer.json()["message"]
    assert api.get("/templates/aliases/fine").status_code == 404


def test_names_in_answers(api: httpx.Client, build: Builds) -> None:
    name = build.name()
    answer = api.post(
        "/v3/templates", json={"name": f"{name.upper()}:First", "tags": ["second", "first"]}
    )
    assert answer.status_code == 202
    made = answer.json()
    assert set(made) >= {"templateID", "buildID", "public", "names", "tags", "aliases"}
    assert sorted(made["tags"]) == ["first", "second"]
    assert (made["aliases"], made["public"]) == ([name], False)
    (whole,) = made["names"]
    assert re.fullmatch(rf"[a-z0-9-]+/{name}", whole)
    again = api.post("/v3/templates", json={"name": whole})
    assert again.json()["templateID"] == made["templateID"]
    assert again.json()["tags"] == ["default"]
    # The older field is as good.
    older = api.post("/v3/templates", json={"alias": name})
    assert older.json()["templateID"] == made["templateID"]
    taken = api.post("/v3/templates", json={"name": made["templateID"]})
    assert taken.status_code == 409, taken.text
    assert taken.json()["message"] == f"Alias '{made['templateID']}' is already used"


def test_earlier_ways_to_create_one(api: httpx.Client, build: Builds) -> None:
    name = build.name()
    v2 = api.post("/v2/templates", json={"alias": name, "cpuCount": 2, "memoryMB": 512})
    assert v2.status_code == 202, v2.text
    assert {"templateID", "buildID", "public", "aliases"} <= set(v2.json())
    assert v2.json()["aliases"] == [name]
    built = Built(v2.json()["templateID"], v2.json()["buildID"], name)
    path = f"/v2/templates/{built.template_id}/builds/{built.build_id}"
    started = api.post(path, json={"fromTemplate": "base", "steps": [step("RUN", "true")]})
    assert started.status_code == 202, started.text
    assert build.over(built)["status"] == "ready"
    assert api.post("/v2/templates", json={"cpuCount": 2}).status_code == 400


@pytest.fixture
def theirs(api: httpx.Client, other_team: str) -> Iterator[httpx.Client]:
    """The API, asked by another team."""
    headers = {"X-API-Key": other_team}
    with httpx.Client(base_url=api.base_url, headers=headers, timeout=75) as client:
        yield client


def test_who_sees_it(api: httpx.Client, build: Builds, steps: Steps, theirs: httpx.Client) -> None:
    built, status = steps(step("RUN", "echo ours > /home/user/whose"))
    assert status["status"] == "ready"
    mine = api.get(f"/templates/aliases/{built.name}")
    assert (mine.status_code, mine.json()) == (
        200,
        {"templateID": built.template_id, "public": False},
    )
    body = {"templateID": built.template_id, "timeout": 60}
    assert theirs.post("/v2/sandboxes", json=body).status_code in {403, 404}
    assert theirs.get(f"/templates/{built.template_id}").status_code in {403, 404}
    assert built.template_id not in theirs.get("/templates").text

    published = api.patch(f"/v2/templates/{built.name}", json={"public": True})
    assert published.status_code == 200, published.text
    (whole,) = published.json()["names"]
    assert whole.endswith(f"/{built.name}")
    made = theirs.post("/v2/sandboxes", json={"templateID": whole, "timeout": 60})
    assert made.status_code == 201, made.text
    theirs.delete(f"/sandboxes/{made.json()['sandboxID']}")
    # To use it is not to own it.
    assert theirs.delete(f"/templates/{built.template_id}").status_code in {403, 404}
    assert theirs.patch(f"/v2/templates/{whole}", json={"public": False}).status_code in {403, 404}
    begun = theirs.post("/templates/tags", json={"target": whole, "tags": ["mine"]})
    assert begun.status_code in {403, 404}
    status = f"/templates/{built.template_id}/builds/{built.build_id}/status"
    assert theirs.get(status).status_code == 403
    derived = Steps(theirs, Builds(theirs))
    one = derived.register(f"derived-{uuid.uuid4().hex[:8]}")
    assert derived.begin(one, fromTemplate=whole, steps=[]).status_code == 202
    assert Builds(theirs).over(one)["status"] == "ready"
    assert theirs.delete(f"/templates/{one.template_id}").status_code == 204

    assert api.patch(f"/v2/templates/{built.name}", json={"public": False}).status_code == 200
    assert theirs.post("/v2/sandboxes", json=body).status_code in {403, 404}
    assert api.patch("/v2/templates/no-such", json={"public": True}).status_code == 404
    assert api.patch(f"/v2/templates/{built.name}", json={"public": "x"}).status_code == 400


def test_two_teams_may_use_one_name(build: Builds, steps: Steps, theirs: httpx.Client) -> None:
    built, _ = steps(step("RUN", "true"))
    other = Builds(theirs)
    answer = theirs.post("/v3/templates", json={"name": built.name})
    assert answer.status_code == 202, answer.text
    assert answer.json()["templateID"] != built.template_id
    assert other.delete(answer.json()["templateID"]).status_code == 204
    assert build.status(built)["status"] == "ready"


def test_base_belongs_to_nobody(build: Builds, api: httpx.Client) -> None:
    assert api.delete("/templates/base").status_code in {403, 404}
    assert api.get("/templates/aliases/base").status_code in {200, 403}
    with pytest.raises(BuildException):
        build(Template().from_base_image(), "x" * 200)

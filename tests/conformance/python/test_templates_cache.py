"""What a build does again and what not: a step that makes an identifier shows which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
from e2b import Sandbox, Template

from support.templates import Builds, Built, Steps, step

Create = Callable[..., Sandbox]

#: Makes another file each time that it runs.
ONCE = "cat /proc/sys/kernel/random/uuid > {}"


def base() -> Any:
    return Template().from_base_image()


def ids(create: Create, built: Built, *names: str) -> list[str]:
    """What the build's steps wrote."""
    sandbox = create(template=built.name)
    return [sandbox.files.read(f"/home/user/{name}") for name in names]


def test_an_unchanged_template_is_not_built_again(build: Builds, create: Create) -> None:
    def template() -> Any:
        made = base().set_envs({"SALT": salt}).run_cmd(ONCE.format("a")).set_workdir("/home/user/w")
        return made.run_cmd(ONCE.format("/home/user/b"))

    salt = build.name()
    first = build(template())
    assert not first.said("^CACHED")
    second = build(template(), first.name)
    assert len(second.said(r"^CACHED \[builder \d+/\d+\] RUN cat")) == 2
    assert not second.said(r"^\[builder \d+/\d+\] RUN")
    assert second.build_id != first.build_id
    assert ids(create, first, "a", "b") == ids(create, second, "a", "b")


def test_only_what_follows_a_change_is_built_again(build: Builds, create: Create) -> None:
    def template(last: str) -> Any:
        made = base().set_envs({"SALT": salt})
        return made.run_cmd(ONCE.format("a")).run_cmd(ONCE.format("b")).run_cmd(last)

    salt = build.name()
    first = build(template("echo 1 > c"))
    one = ids(create, first, "a", "b", "c")
    second = build(template("echo 2 > c"), first.name)
    assert ids(create, second, "a", "b", "c") == [*one[:2], "2\n"]
    assert len(second.said(r"^CACHED \[builder \d+/\d+\] RUN cat")) == 2
    assert len(second.said(r"^\[builder \d+/\d+\] RUN echo 2")) == 1


def test_another_template_of_the_team_begins_where_the_first_got(
    build: Builds, create: Create
) -> None:
    salt = build.name()
    first = build(base().set_envs({"SALT": salt}).run_cmd(ONCE.format("a")))
    second = build(base().set_envs({"SALT": salt}).run_cmd(ONCE.format("a")).run_cmd("touch b"))
    assert second.template_id != first.template_id
    assert ids(create, first, "a") == ids(create, second, "a")


def test_another_team_does_not(
    api: httpx.Client, build: Builds, steps: Steps, create: Create, other_team: str
) -> None:
    once = [step("ENV", "SALT", build.name()), step("RUN", ONCE.format("a"))]
    ours, status = steps(*once)
    assert status["status"] == "ready", status
    with httpx.Client(
        base_url=api.base_url, headers={"X-API-Key": other_team}, timeout=75
    ) as their_api:
        theirs = Builds(their_api)
        built, status = Steps(their_api, theirs)(*once)
        assert status["status"] == "ready", status
        assert not [line for line in status["logEntries"] if "CACHED" in line["message"]]
        theirs.clean()
    assert built.template_id != ours.template_id


def test_skipping_the_cache(build: Builds, create: Create) -> None:
    def template() -> Any:
        return base().set_envs({"SALT": salt}).run_cmd(ONCE.format("a"))

    salt = build.name()
    first = ids(create, build(template()), "a")
    skipped = build(template(), skip_cache=True)
    assert not skipped.said("^CACHED")
    assert ids(create, skipped, "a") != first


def test_skipping_the_cache_from_a_step_on(build: Builds, create: Create) -> None:
    def template(skip: bool) -> Any:
        made = base().set_envs({"SALT": salt}).run_cmd(ONCE.format("a"))
        made = made.skip_cache() if skip else made
        return made.run_cmd(ONCE.format("b")).run_cmd(ONCE.format("c"))

    salt = build.name()
    first = ids(create, build(template(False)), "a", "b", "c")
    again = ids(create, build(template(True)), "a", "b", "c")
    assert again[0] == first[0]
    assert not set(again[1:]) & set(first)
    # What was made last is what the next finds.
    assert ids(create, build(template(False)), "a", "b", "c") == again


def test_skipping_the_cache_before_the_base(build: Builds, create: Create) -> None:
    salt = build.name()
    once = ONCE.format("a")
    first = build(base().set_envs({"SALT": salt}).run_cmd(once))
    forced = Template().skip_cache().from_base_image().set_envs({"SALT": salt}).run_cmd(once)
    assert ids(create, build(forced), "a") != ids(create, first, "a")


def test_steps_before_a_failure_are_kept(build: Builds, create: Create) -> None:
    def template(last: str) -> Any:
        return base().set_envs({"SALT": salt}).run_cmd(ONCE.format("a")).run_cmd(last)

    salt = build.name()
    failed = build.fails(template("exit 1"))
    assert failed.step == "3"
    built = build(template("exit 0"), failed.built.name)
    assert built.said(r"^CACHED \[builder \d+/\d+\] RUN cat")


def test_the_state_of_the_step_before_counts(build: Builds, create: Create) -> None:
    """The same command after another one, user or directory is another step."""
    salt = build.name()

    def template(**different: str) -> Any:
        made = base().set_envs({"SALT": salt, "V": different.get("variable", "1")})
        made = made.set_workdir(different.get("workdir", "/home/user"))
        return made.run_cmd(ONCE.format("/home/user/a"), user=different.get("user", "user"))

    first = ids(create, build(template()), "a")
    for change in ({"variable": "2"}, {"workdir": "/tmp"}, {"user": "root"}):
        assert ids(create, build(template(**change)), "a") != first, change
    assert ids(create, build(template()), "a") == first


def test_a_template_below_that_is_built_anew(build: Builds, create: Create) -> None:
    below = build(base().run_cmd("echo 1 > level"))

    def above() -> Any:
        return Template().from_template(below.name).run_cmd("cp level copied")

    assert ids(create, build(above()), "copied") == ["1\n"]
    build(base().run_cmd("echo 2 > level"), below.name)
    assert ids(create, build(above()), "copied") == ["2\n"]


def test_what_a_step_removes_is_gone(build: Builds, create: Create) -> None:
    built = build(
        base()
        .run_cmd("mkdir d && echo 1 > d/one && echo 2 > d/two && ln d/one linked && touch gone")
        .run_cmd("rm gone d/one && rm -r d && mkdir d && echo 3 > d/three")
        .run_cmd("chmod 600 d/three && mv d/three moved && setfattr -n user.a -v 1 moved || true")
        .run_cmd("rm -rf /etc/skel && mkdir /etc/skel && touch /etc/skel/new", user="root")
    )
    sandbox = create(template=built.name)
    assert (
        sandbox.commands.run("ls -A d; ls -A /etc/skel; cat linked moved").stdout == "new\n1\n3\n"
    )
    assert not sandbox.files.exists("gone")
    assert sandbox.commands.run("stat -c %a moved").stdout == "600\n"


def test_nothing_of_the_build_itself_is_left(build: Builds, create: Create) -> None:
    sandbox = create(template=build(base().run_cmd("true")).name)
    plain = create()
    for look in ("ls -A / /home/user /opt /srv /usr/local", "sudo ls -A /root", "getent passwd"):
        assert sandbox.commands.run(look).stdout == plain.commands.run(look).stdout
    # It sees itself, too, so nothing else is to be just being started.
    look = 'names=$(ps -e --no-headers -o comm); echo "$names" | sort -u'
    assert sandbox.commands.run(look).stdout == plain.commands.run(look).stdout

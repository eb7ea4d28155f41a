"""Steps of builds that need no files of the client's: each method of the SDK's builder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from e2b import Sandbox, Template

from support.sdk import needs, since
from support.templates import Builds, Steps, step

Create = Callable[..., Sandbox]

#: The client library that a request seems to come from.
AGENT = "e2b-python-sdk/{}"


@pytest.fixture
def of(build: Builds, create: Create) -> Callable[..., Sandbox]:
    """A sandbox of a template."""

    def make(template: Any, **options: Any) -> Sandbox:
        return create(template=build(template, **options).name)

    return make


def base() -> Any:
    return Template().from_base_image()


# Rules: IMAGE-15
def test_a_command_runs_as_the_user_in_a_login_shell(of: Create) -> None:
    sandbox = of(
        base()
        .run_cmd("id -un > who; pwd > where; shopt -q login_shell && touch login")
        .run_cmd("echo $0 > shell; echo ~ > home")
    )
    read = sandbox.commands.run("cat who where home; ls login").stdout
    assert read == "user\n/home/user\n/home/user\nlogin\n"
    assert "bash" in sandbox.files.read("shell")


def test_several_commands_are_one_step(of: Create) -> None:
    sandbox = of(base().run_cmd(["cd /tmp", "pwd > here", "cp here /home/user/there"]))
    assert sandbox.files.read("/home/user/there") == "/tmp\n"


def test_a_command_as_another_user(of: Create) -> None:
    sandbox = of(base().run_cmd("id -un > /who-was-it", user="root").run_cmd("id -un > mine"))
    assert sandbox.files.read("/who-was-it") == "root\n"
    assert sandbox.files.read("/home/user/mine") == "user\n"
    assert sandbox.commands.run("stat -c %U /who-was-it mine").stdout == "root\nuser\n"


def test_shell_syntax_arrives_as_it_is(of: Create) -> None:
    script = """cat <<'EOF' > "/home/user/a b"
$HOME "quoted" 'single' \\ `tick` ünïcode
EOF"""
    sandbox = of(base().run_cmd(script).run_cmd("echo $((6 * 7)) | tee '/home/user/sum'"))
    assert sandbox.files.read("/home/user/a b") == ("$HOME \"quoted\" 'single' \\ `tick` ünïcode\n")
    assert sandbox.files.read("/home/user/sum") == "42\n"


# Rules: IMAGE-13
def test_variables_are_there_in_later_steps(of: Create) -> None:
    sandbox = of(
        base()
        .set_envs({"GREETING": "hello", "SPACED": "a b  c"})
        .set_envs({"WHOLE": "$GREETING-${GREETING}", "LITERAL": "100%"})
        .run_cmd('echo "$GREETING|$SPACED|$WHOLE|$LITERAL" > variables')
        .set_envs({"GREETING": "goodbye"})
        .run_cmd('echo "$GREETING|$WHOLE" >> variables')
        .run_cmd('echo "$GREETING" >> /variables', user="root")
    )
    assert sandbox.files.read("variables") == "hello|a b  c|hello-hello|100%\ngoodbye|hello-hello\n"
    assert sandbox.files.read("/variables") == "goodbye\n"


# Rules: IMAGE-13
def test_variables_are_there_in_sandboxes(build: Builds, create: Create) -> None:
    built = build(base().set_envs({"GREETING": "hello", "OTHER": "of the template"}))
    command = 'echo "$GREETING|$OTHER"'
    sandbox = create(template=built.name, envs={"OTHER": "of the create"})
    assert sandbox.commands.run(command).stdout == "hello|of the create\n"
    said = sandbox.commands.run(command, envs={"GREETING": "of the command"}).stdout
    assert said == "of the command|of the create\n"
    assert create(template=built.name).commands.run(command).stdout == "hello|of the template\n"


# Rules: IMAGE-12
def test_the_working_directory(of: Create) -> None:
    sandbox = of(
        base()
        .set_workdir("/home/user/app")
        .run_cmd("pwd > where")
        .set_workdir("deeper/still")
        .run_cmd("pwd > where; stat -c %U . .. > owner")
    )
    assert sandbox.files.read("/home/user/app/where") == "/home/user/app\n"
    assert sandbox.commands.run("pwd").stdout == "/home/user/app/deeper/still\n"
    assert sandbox.commands.run("cat where owner").stdout == (
        "/home/user/app/deeper/still\nuser\nuser\n"
    )


# Rules: IMAGE-12
def test_the_user(of: Create) -> None:
    sandbox = of(
        base()
        .set_user("root")
        .set_workdir("/srv/service")
        .run_cmd("id -un > who")
        .set_user("worker")
        .run_cmd("id -un > ~/who; echo ~ > ~/home")
    )
    assert sandbox.commands.run("id -un; pwd").stdout == "worker\n/srv/service\n"
    assert sandbox.files.read("/srv/service/who") == "root\n"
    assert sandbox.files.read("/home/worker/who") == "worker\n"
    assert sandbox.files.read("/home/worker/home") == "/home/worker\n"
    assert sandbox.commands.run("stat -c %U ~").stdout == "worker\n"
    assert sandbox.commands.run("id -un", user="user").stdout == "user\n"
    assert sandbox.commands.run("sudo -n id -un || echo refused").stdout == "refused\n"


# Rules: IMAGE-12
def test_a_user_who_may_become_root(create: Create, steps: Steps) -> None:
    built, status = steps(step("USER", "operator2", "true"))
    assert status["status"] == "ready", status
    sandbox = create(template=built.name)
    assert sandbox.commands.run("id -un; sudo -n id -un").stdout == "operator2\nroot\n"


@pytest.mark.parametrize(
    ("version", "then"),
    [("2.2.9", "user\n/home/user\n"), ("2.3.0", "root\n/srv\n"), ("", "root\n/srv\n")],
)
def test_older_clients_begin_as_user(
    build: Builds, steps: Steps, create: Create, version: str, then: str
) -> None:
    headers = {"User-Agent": AGENT.format(version)} if version else {"User-Agent": "curl/8"}
    built = steps.register()
    todo = [step("USER", "root"), step("WORKDIR", "/srv")]
    assert steps.begin(built, headers, steps=todo).status_code == 202
    assert build.over(built)["status"] == "ready"
    assert create(template=built.name).commands.run("id -un; pwd").stdout == then


def test_relative_workdir_of_root_is_in_its_home(
    build: Builds, steps: Steps, create: Create
) -> None:
    built = steps.register()
    todo = [step("USER", "root"), step("WORKDIR", "app"), step("WORKDIR", "inner")]
    assert steps.begin(built, {"User-Agent": "curl/8"}, steps=todo).status_code == 202
    assert build.over(built)["status"] == "ready"
    assert create(template=built.name).commands.run("pwd").stdout == "/root/app/inner\n"


def test_a_client_of_no_version(steps: Steps, build: Builds) -> None:
    answer = steps.begin(steps.register(), {"User-Agent": AGENT.format("new")}, steps=[])
    assert answer.status_code == 400
    assert answer.json()["message"].startswith("Error when parsing user agent")


@since("2.63.0", "names with spaces")
def test_files_and_directories(of: Create) -> None:
    sandbox = of(
        base()
        .make_dir("/home/user/one dir", mode=0o700)
        .make_dir(["/home/user/a/b", "/home/user/c"])
        .make_dir("/opt/of-root", mode=0o750, user="root")
        .run_cmd("touch a/b/x a/b/y c/z 'one dir/w'")
        .rename("/home/user/a/b/x", "/home/user/a/moved")
        .rename("/home/user/c/z", "/home/user/a/b/y", force=True)
        .remove("/home/user/one dir/w")
        .remove("/home/user/not-there", force=True)
        .remove(["/home/user/c"], recursive=True)
        .make_symlink("/home/user/a/moved", "/home/user/link")
        .make_symlink("/etc/passwd", "/home/user/link", force=True)
        .make_symlink("nowhere", "/opt/of-root/link", user="root")
        .remove("/opt/of-root/link", user="root")
    )
    run = sandbox.commands.run
    assert run("find a c 'one dir' link 2>/dev/null | sort").stdout.split("\n")[:-1] == sorted(
        ["a", "a/b", "a/b/y", "a/moved", "link", "one dir"]
    )
    assert run("readlink link").stdout == "/etc/passwd\n"
    assert run("stat -c '%a %U' 'one dir' /opt/of-root").stdout == "700 user\n750 root\n"
    assert run("sudo ls -A /opt/of-root").stdout == ""


@since("2.63.0", "names with spaces")
def test_a_repository_is_cloned(of: Create) -> None:
    make = [
        *("git init -q -b main origin", "cd origin", "git config user.email a@b.c"),
        *("git config user.name A", "echo 1 > file", "git add .", "git commit -qm first"),
        *("echo 2 > file", "git commit -qam second", "git checkout -qb side", "echo 3 > file"),
        "git commit -qam third",
    ]
    origin = "file:///home/user/origin"
    sandbox = of(
        base()
        .run_cmd(make)
        .git_clone(origin, "/home/user/whole")
        .git_clone(origin, "/home/user/some where", branch="main", depth=1)
        .run_cmd("git config --global --add safe.directory '*'", user="root")
        .git_clone("/home/user/origin", "/opt/clone", user="root")
    )
    run = sandbox.commands.run
    assert run("cat whole/file 'some where/file' /opt/clone/file").stdout == "3\n2\n3\n"
    assert run("git -C 'some where' rev-list --count HEAD").stdout == "1\n"
    assert run("git -C whole rev-list --count HEAD").stdout == "3\n"


def test_python_packages(of: Create) -> None:
    """Of wheels that are made here: what sandboxes reach of the world is another matter."""
    make = """
import zipfile
for name in ("first", "second"):
    with zipfile.ZipFile(f"/tmp/{name}-1.0-py3-none-any.whl", "w") as wheel:
        info = f"{name}-1.0.dist-info"
        wheel.writestr(f"{name}.py", f"print('{name} is here')")
        metadata = f"Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n"
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
"""
    sandbox = of(
        base()
        .run_cmd(f"python3 - <<'EOF'\n{make}\nEOF")
        .pip_install("/tmp/first-1.0-py3-none-any.whl")
        .pip_install(["--no-index", "/tmp/second-1.0-py3-none-any.whl"], g=False)
    )
    assert sandbox.commands.run("python3 -m first").stdout == "first is here\n"
    assert sandbox.commands.run("python3 -m second").stdout == "second is here\n"
    located = sandbox.commands.run("python3 -c 'import second; print(second.__file__)'").stdout
    assert located.splitlines()[-1].startswith("/home/user/.local/")


def test_node_packages(of: Create) -> None:
    make = [
        "mkdir -p /tmp/pack && cd /tmp/pack",
        """echo '{"name":"pack","version":"1.0.0","bin":{"pack":"p.js"}}' > package.json""",
        "printf '#!/usr/bin/env node\\nconsole.log(\"pack is here\")\\n' > p.js && chmod +x p.js",
        "npm pack --silent",
    ]
    sandbox = of(
        base()
        .run_cmd(make)
        .npm_install("/tmp/pack/pack-1.0.0.tgz", g=True)
        .set_workdir("/home/user/project")
        .run_cmd("echo '{}' > package.json")
        .npm_install(["/tmp/pack/pack-1.0.0.tgz"], dev=True)
        .npm_install()
    )
    assert sandbox.commands.run("pack; node node_modules/pack/p.js").stdout == (
        "pack is here\npack is here\n"
    )
    assert '"devDependencies"' in sandbox.files.read("/home/user/project/package.json")


def test_debian_packages(of: Create) -> None:
    """From a repository inside of the sandbox."""
    control = "Package: small\\nVersion: 1\\nArchitecture: all\\nMaintainer: A <a@b.c>\\n"
    make = [
        "mkdir -p /srv/repo/small/DEBIAN /srv/repo/small/usr/bin && cd /srv/repo",
        f"printf '{control}Description: small\\n' > small/DEBIAN/control",
        "printf '#!/bin/sh\\necho small is here\\n' > small/usr/bin/small",
        "chmod 755 small/usr/bin/small",
        "dpkg-deb --build small small_1_all.deb",
        "(cat small/DEBIAN/control; echo Filename: ./small_1_all.deb;"
        " echo Size: $(stat -c %s small_1_all.deb);"
        " echo SHA256: $(sha256sum small_1_all.deb | cut -d' ' -f1)) > Packages",
        "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*",
        "echo 'deb [trusted=yes] file:/srv/repo ./' > /etc/apt/sources.list",
    ]
    template = base().run_cmd(make, user="root").apt_install(["small"], no_install_recommends=True)
    assert of(template).commands.run("small").stdout == "small is here\n"


def test_from_another_template(build: Builds, create: Create) -> None:
    below = build(base().set_envs({"LEVEL": "below"}).run_cmd("echo below > level"))
    above = build(
        Template().from_template(below.name).run_cmd("cat level > copied; echo above > level")
    )
    assert above.template_id != below.template_id
    sandbox = create(template=above.name)
    assert sandbox.commands.run("cat copied level").stdout == "below\nabove\n"
    assert create(template=below.name).files.read("level") == "below\n"


def test_a_template_outlives_the_one_that_it_is_made_from(build: Builds, create: Create) -> None:
    below = build(base().run_cmd("echo below > level"))
    above = build(Template().from_template(below.name).run_cmd("cat level > copied"))
    assert build.delete(below.name).status_code == 204
    assert create(template=above.name).commands.run("cat copied level").stdout == "below\nbelow\n"


@needs(Sandbox, "create_snapshot")
def test_from_a_snapshot(build: Builds, create: Create, snap: Callable[..., str]) -> None:
    source = create()
    source.files.write("/home/user/file", "of the snapshot")
    snapshot = snap(source)
    built = build(Template().from_template(snapshot).run_cmd("cp file copied"))
    assert create(template=built.name).files.read("copied") == "of the snapshot"


def test_steps_that_no_sdk_sends(create: Create, steps: Steps) -> None:
    built, status = steps(
        step("ARG", "VERSION", "3"),
        step("ENV", "NAMED", "v$VERSION", "SECOND", "${NAMED}!"),
        step("RUN", "echo $VERSION $NAMED $SECOND > /home/user/said"),
    )
    assert status["status"] == "ready", status
    assert create(template=built.name).files.read("said") == "3 v3 v3!\n"


def test_an_unknown_step_fails_the_build(steps: Steps) -> None:
    _, status = steps(step("RUN", "true"), step("FETCH", "x"))
    assert status["status"] == "error"
    assert status["reason"]["step"] == "2"
    assert "FETCH is not implemented" in status["reason"]["message"]

"""COPY: files of the client's in a template."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import Sandbox, Template, TemplateException

from support import patient
from support.sdk import NEWEST, SDK, since, takes
from support.templates import Builds, Steps, step

Create = Callable[..., Sandbox]

COPY = type(Template().from_base_image()).copy


class Context:
    """Files that are copied from, and sandboxes of templates that they are copied to."""

    def __init__(self, directory: Path, build: Builds, create: Create) -> None:
        self.directory, self.build, self._create = directory, build, create

    def write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = self.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def template(self, ignore: list[str] | None = None) -> Any:
        return Template(
            file_context_path=self.directory, file_ignore_patterns=ignore
        ).from_base_image()

    def sandbox(self, template: Any) -> Sandbox:
        return self._create(template=self.build(template).name)


@pytest.fixture
def context(tmp_path: Path, build: Builds, create: Create) -> Context:
    return Context(tmp_path, build, create)


def tree(sandbox: Sandbox, path: str) -> list[str]:
    """All below a path, sorted."""
    listed = sandbox.commands.run(f"cd '{path}' && find . -mindepth 1 | sort").stdout
    return [line.removeprefix("./") for line in listed.splitlines()]


# Rules: IMAGE-15
def test_a_file(context: Context) -> None:
    context.write({"file": "text\n", "sub/other": "other\n"})
    sandbox = context.sandbox(
        context.template()
        .copy("file", "/home/user/renamed")
        .copy("file", "/home/user/directory/")
        .copy("sub/other", "/opt/not/there/yet/other")
        .copy("sub/other", "relative")
        .copy(Path("file"), Path("/home/user/path"))
    )
    assert sandbox.files.read("/home/user/renamed") == "text\n"
    assert sandbox.files.read("/home/user/directory/file") == "text\n"
    assert sandbox.files.read("/opt/not/there/yet/other") == "other\n"
    assert sandbox.files.read("/home/user/relative") == "other\n"
    assert sandbox.files.read("/home/user/path") == "text\n"
    owners = sandbox.commands.run("stat -c %U renamed directory/file relative").stdout
    assert owners == "user\nuser\nuser\n"


@since("2.63.0", "hidden files of a directory")
def test_a_directory_gives_its_contents(context: Context) -> None:
    context.write({"app/main.py": "main", "app/lib/util.py": "util", "app/.hidden": "hidden"})
    (context.directory / "app/empty").mkdir()
    sandbox = context.sandbox(
        context.template()
        .run_cmd("mkdir -p there/lib && echo mine > there/lib/mine && echo old > there/main.py")
        .copy("app", "/home/user/fresh")
        .copy("app/", "/home/user/there/")
        .copy("app/lib", ".")
    )
    assert tree(sandbox, "/home/user/fresh") == [
        *(".hidden", "empty", "lib", "lib/util.py", "main.py")
    ]
    # What is there stays, unless it is replaced.
    assert tree(sandbox, "/home/user/there") == [
        *(".hidden", "empty", "lib", "lib/mine", "lib/util.py", "main.py")
    ]
    assert sandbox.files.read("there/main.py") == "main"
    assert sandbox.files.read("util.py") == "util"


def test_everything(context: Context) -> None:
    context.write({"one": "1", "two/three": "3"})
    sandbox = context.sandbox(context.template().copy(".", "/home/user/all/"))
    assert tree(sandbox, "/home/user/all") == ["one", "two", "two/three"]


def test_patterns(context: Context) -> None:
    context.write({"a.txt": "a", "b.txt": "b", "c.md": "c", "deep/er/d.txt": "d"})
    sandbox = context.sandbox(
        context.template()
        .copy("*.txt", "/home/user/flat/")
        .set_workdir("/home/user/work")
        .copy("*.md", "relative/")
    )
    assert tree(sandbox, "/home/user/flat") == ["a.txt", "b.txt"]
    assert tree(sandbox, "/home/user/work") == ["relative", "relative/c.md"]


def test_several_sources(context: Context) -> None:
    context.write({"one": "1", "two": "2", "three": "3"})
    template = context.template().copy(["one", "two"], "/home/user/dir/")
    sandbox = context.sandbox(
        template.copy_items(
            [
                {"src": "three", "dest": "/home/user/third"},
                {"src": "one", "dest": "/home/user/owned", "user": "root", "mode": 0o604},
            ]
        )
    )
    assert tree(sandbox, "/home/user/dir") == ["one", "two"]
    assert sandbox.files.read("third") == "3"
    assert sandbox.commands.run("stat -c '%a %U:%G' owned").stdout == "604 root:root\n"


# Rules: IMAGE-15
def test_owner_and_mode(context: Context) -> None:
    context.write({"dir/plain": "x", "dir/sub/tool": "x"})
    os.chmod(context.directory / "dir/sub/tool", 0o755)
    sandbox = context.sandbox(
        context.template()
        .copy("dir", "/home/user/kept")
        .copy("dir", "/home/user/locked", mode=0o700)
        .copy("dir/plain", "/home/user/theirs", user="root", mode=0o640)
        .copy("dir/plain", "/home/user/mixed", user="user:root")
        .set_user("root")
        .copy("dir/plain", "/srv/of-root")
    )
    stat = sandbox.commands.run(
        "cd /home/user; sudo stat -c '%a %U:%G' kept/plain kept/sub/tool locked locked/sub"
        " locked/sub/tool theirs mixed /srv/of-root",
        user="user",
    )
    kept, tool, *rest = stat.stdout.splitlines()
    assert (kept, tool) == ("644 user:user", "755 user:user")
    assert rest == [
        *("700 user:user", "700 user:user", "700 user:user", "640 root:root"),
        *("644 user:root", "644 root:root"),
    ]


@since("2.63.0", "rules of .dockerignore as Docker has them")
def test_rules_of_what_is_ignored(context: Context) -> None:
    context.write(
        {
            ".dockerignore": "# comment\n\n*.log\nnode_modules\n",
            "app/a.log": "log",
            "a.log": "log",
            "keep.txt": "keep",
            "secret.env": "secret",
            "node_modules/x/y.js": "js",
        }
    )
    template = context.template(ignore=["secret.env"]).copy(".", "/home/user/all/")
    found = tree(context.sandbox(template), "/home/user/all")
    assert "keep.txt" in found
    assert not {"a.log", "secret.env", "node_modules", "node_modules/x/y.js"} & set(found)


def test_links(context: Context) -> None:
    context.write({"links/target": "text", "elsewhere/file": "outside"})
    for name, target in {
        "relative": "target",
        "up": "../elsewhere/file",
        "dangling": "nowhere",
        "absolute": "/etc/passwd",
        "directory": "../elsewhere",
    }.items():
        (context.directory / "links" / name).symlink_to(target)
    sandbox = context.sandbox(context.template().copy("links", "/home/user/links"))
    shown = sandbox.commands.run(
        "cd links; for l in relative up dangling absolute directory; do readlink $l; done"
    ).stdout
    assert shown.split() == [
        *("target", "../elsewhere/file", "nowhere", "/etc/passwd", "../elsewhere")
    ]
    assert sandbox.files.read("links/relative") == "text"


def test_links_are_followed_when_asked(context: Context) -> None:
    context.write({"target": "text"})
    (context.directory / "link").symlink_to("target")
    sandbox = context.sandbox(
        context.template().copy("link", "/home/user/link", resolve_symlinks=True)
    )
    assert sandbox.commands.run("stat -c %F link; cat link").stdout == "regular file\ntext"


def test_names_that_need_care(context: Context) -> None:
    names = ["a b", "ünï", "quo'te", 'dou"ble', "$HOME", "-n", "semi;colon", "new\nline"]
    context.write({f"odd/{name}": name for name in names})
    sandbox = context.sandbox(context.template().copy("odd", "/home/user/it's here"))
    for name in names:
        assert sandbox.files.read(f"/home/user/it's here/{name}") == name


def test_a_file_may_become_what_another_step_made(context: Context) -> None:
    context.write({"file": "new"})
    sandbox = context.sandbox(
        context.template()
        .run_cmd("echo old > file; ln -s file link; mkdir taken")
        .copy("file", "/home/user/link")
        .copy("file", "/home/user/taken")
    )
    assert sandbox.files.read("link") == "new"
    assert sandbox.files.read("taken/file") == "new"


@since("2.63.0", "archives without compression")
def test_an_archive_without_compression(context: Context) -> None:
    context.write({"dir/file": "plain", "dir/other": "x" * 100_000})
    sandbox = context.sandbox(context.template().copy("dir", "/home/user/dir", gzip=False))
    assert tree(sandbox, "/home/user/dir") == ["file", "other"]
    assert sandbox.files.read("dir/file") == "plain"


def test_much(context: Context) -> None:
    context.write({f"many/{i // 100}/{i}": str(i) for i in range(2000)})
    (context.directory / "big").write_bytes(os.urandom(32 << 20))
    sandbox = context.sandbox(
        context.template().copy("many", "/home/user/many").copy("big", "/home/user/big")
    )
    assert sandbox.commands.run("find many -type f | wc -l; stat -c %s big").stdout == (
        f"2000\n{32 << 20}\n"
    )


def test_files_are_uploaded_once(context: Context) -> None:
    context.write({"file": f"text {os.urandom(8).hex()}"})
    copy = {"dest": "/home/user/file"}
    first = context.build(context.template().copy("file", **copy))
    assert first.said("Uploaded 'file'")
    # For another template of the team too.
    second = context.build(context.template().copy("file", **copy))
    assert second.said("Skipping upload of 'file'")
    assert second.said(r"^CACHED \[builder \d+/\d+\] COPY file")
    forced = context.build(context.template().copy("file", force_upload=True, **copy))
    assert forced.said("Uploaded 'file'")
    assert not forced.said(r"^CACHED \[builder \d+/\d+\] COPY file")
    context.write({"file": f"text {os.urandom(8).hex()}"})
    changed = context.build(context.template().copy("file", **copy))
    assert changed.said("Uploaded 'file'")
    assert not changed.said(r"^CACHED \[builder \d+/\d+\] COPY file")


def test_what_the_sdk_refuses(context: Context) -> None:
    refused = (TemplateException, ValueError)
    with pytest.raises(refused, match="No files found"):
        context.build(context.template().copy("missing", "/home/user/"))
    if SDK >= NEWEST:
        for path in ("../above", "/etc/passwd"):
            with pytest.raises(TemplateException, match="Invalid source path"):
                context.template().copy(path, "/home/user/")


HASH = "ab" * 32


def test_a_copy_without_files_fails_the_build(steps: Steps, build: Builds) -> None:
    """With a step and a reason, or at once: nothing is built either way."""
    unknown = os.urandom(32).hex()
    built = steps.register()
    copy = step("COPY", "file", "/home/user/file", filesHash=unknown)
    answer = steps.begin(built, steps=[step("RUN", "true"), copy])
    assert answer.status_code == 202, answer.text
    status = build.over(built)
    assert (status["status"], status["reason"]["step"]) == ("error", "2")
    assert "ATL-5011" in str(status) or "upload" in status["reason"]["message"]


def test_links_for_uploads(api: httpx.Client, steps: Steps, create: Create) -> None:
    built = steps.register()
    path = f"/templates/{built.template_id}/files"
    bad = api.get(f"{path}/not-a-hash")
    assert (bad.status_code, bad.json()["message"]) == (400, "Invalid files hash")
    assert api.get(f"/templates/{'z' * 20}/files/{HASH}").status_code == 404
    answer = api.get(f"{path}/{os.urandom(32).hex()}")
    assert answer.status_code == 201
    assert answer.json()["present"] is False
    url = answer.json()["url"]
    # The link is all that is needed, for one thing and no other.
    changed = url.replace("signature=", "signature=0")
    assert patient.put(changed, content=b"x").status_code in {400, 401, 403}
    other = url.replace(url.rpartition("?")[0].rpartition("/")[2], HASH)
    assert patient.put(other, content=b"x").status_code in {400, 401, 403}
    assert patient.get(url).status_code in {401, 403, 404, 405}


@takes(COPY, "force_upload")
def test_an_empty_file_and_an_executable(context: Context) -> None:
    context.write({"empty": "", "tool": "#!/bin/sh\necho it runs\n"})
    os.chmod(context.directory / "tool", 0o755)
    sandbox = context.sandbox(
        context.template()
        .copy("empty", "/home/user/empty")
        .copy("tool", "/usr/local/bin/tool")
        .run_cmd("tool > said")
    )
    assert sandbox.files.read("empty") == ""
    assert sandbox.files.read("said") == "it runs\n"

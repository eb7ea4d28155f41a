"""The git helpers of the SDKs: plain commands in the sandbox, whose output the SDKs read."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from e2b import AsyncSandbox, Sandbox

from support import guest
from support.sdk import needs

pytestmark = [
    needs(Sandbox, "git"),
    pytest.mark.filterwarnings("ignore:.*git.*:DeprecationWarning"),
]

URL = "http://127.0.0.1:8123"


class Both:
    """One script for both SDKs: awaits what is to be awaited."""

    def __init__(self, sandbox: Sandbox | AsyncSandbox) -> None:
        self.git = sandbox.git
        self._sandbox = sandbox

    async def __call__(self, result: Any) -> Any:
        return await result if inspect.isawaitable(result) else result

    async def run(self, command: str) -> str:
        return (await self(self._sandbox.commands.run(command))).stdout

    async def write(self, path: str, content: str) -> None:
        await self(self._sandbox.files.write(path, content))


@pytest_asyncio.fixture(params=["sync", "async"])
async def sdk(
    request: pytest.FixtureRequest, create: Callable[..., Sandbox]
) -> AsyncIterator[Both]:
    sandbox = create(timeout=300)
    guest.serve_git(sandbox, 8123)
    if request.param == "sync":
        yield Both(sandbox)
    else:
        yield Both(await AsyncSandbox.connect(sandbox.sandbox_id))


async def commit(sdk: Both, repository: str, name: str, content: str = "x\n") -> None:
    await sdk.write(f"{repository}/{name}", content)
    await sdk(sdk.git.add(repository))
    await sdk(sdk.git.commit(repository, f"Add {name}", "Ada", "ada@example.test"))


# Rules: SDK-6
async def test_a_repository_from_nothing(sdk: Both) -> None:
    git = sdk.git
    await sdk(git.init("repo", initial_branch="main"))
    await sdk(git.configure_user("Ada L", "ada@example.test"))
    await sdk.write("repo/a b.txt", "one\n")
    status = await sdk(git.status("repo"))
    assert (status.current_branch, status.has_untracked, status.has_staged) == ("main", True, False)
    await sdk(git.add("repo"))
    status = await sdk(git.status("repo"))
    assert [(file.status, file.staged) for file in status.file_status] == [("added", True)]
    await sdk(git.commit("repo", 'A "quoted" message; with $(nothing) run'))
    assert (await sdk(git.status("repo"))).is_clean
    log = await sdk.run("git -C repo log --format='%an <%ae>: %s'")
    assert log == 'Ada L <ada@example.test>: A "quoted" message; with $(nothing) run\n'


async def test_changes_and_their_undoing(sdk: Both) -> None:
    git = sdk.git
    await sdk(git.init("repo", initial_branch="main"))
    for name in ("kept", "changed", "removed", "moved"):
        await commit(sdk, "repo", name, f"{name}\nwith some\ncontent\n")
    await sdk.write("repo/changed", "other\n")
    await sdk.run("cd repo; rm removed; git mv moved renamed")
    status = await sdk(git.status("repo"))
    seen = {file.name: (file.status, file.renamed_from) for file in status.file_status}
    assert seen == {
        "changed": ("modified", None),
        "removed": ("deleted", None),
        "renamed": ("renamed", "moved"),
    }
    await sdk(git.restore("repo", ["removed"]))
    assert (await sdk.run("cat repo/removed")).startswith("removed\n")
    await sdk(git.reset("repo", mode="hard"))
    assert (await sdk(git.status("repo"))).is_clean
    await sdk(git.reset("repo", mode="soft", target="HEAD~1"))
    status = await sdk(git.status("repo"))
    assert [(file.name, file.staged) for file in status.file_status] == [("moved", True)]


# Rules: SDK-6
async def test_branches(sdk: Both) -> None:
    git = sdk.git
    await sdk(git.init("repo", initial_branch="main"))
    await commit(sdk, "repo", "first")
    await sdk(git.create_branch("repo", "feature/one"))
    await commit(sdk, "repo", "second")
    branches = await sdk(git.branches("repo"))
    assert sorted(branches.branches) == ["feature/one", "main"]
    assert branches.current_branch == "feature/one"
    await sdk(git.checkout_branch("repo", "main"))
    assert (await sdk.run("ls repo")) == "first\n"
    with pytest.raises(Exception, match="not fully merged"):
        await sdk(git.delete_branch("repo", "feature/one"))
    await sdk(git.delete_branch("repo", "feature/one", force=True))
    assert (await sdk(git.branches("repo"))).branches == ["main"]


async def test_settings(sdk: Both) -> None:
    git = sdk.git
    await sdk(git.init("repo"))
    assert await sdk(git.get_config("no.such")) is None
    await sdk(git.set_config("pull.rebase", "true"))
    await sdk(git.set_config("pull.rebase", "false", scope="local", path="repo"))
    assert await sdk(git.get_config("pull.rebase")) == "true"
    assert await sdk(git.get_config("pull.rebase", scope="local", path="repo")) == "false"
    await sdk(git.configure_user("Local", "l@example.test", scope="local", path="repo"))
    assert await sdk.run("git -C repo config user.name") == "Local\n"


async def test_remotes(sdk: Both) -> None:
    git = sdk.git
    await sdk(git.init("repo"))
    assert await sdk(git.remote_get("repo", "origin")) is None
    await sdk(git.remote_add("repo", "origin", "file:///srv/a.git"))
    assert await sdk(git.remote_get("repo", "origin")) == "file:///srv/a.git"
    with pytest.raises(Exception, match="already exists"):
        await sdk(git.remote_add("repo", "origin", "file:///srv/b.git"))
    await sdk(git.remote_add("repo", "origin", "file:///srv/b.git", overwrite=True))
    assert await sdk(git.remote_get("repo", "origin")) == "file:///srv/b.git"


# Rules: SDK-6
async def test_push_and_pull_by_file(sdk: Both) -> None:
    git = sdk.git
    await sdk(git.init("hub.git", bare=True, initial_branch="main"))
    await sdk(git.clone("file:///home/user/hub.git", "one"))
    await sdk.run("git -C one checkout -b main")
    await commit(sdk, "one", "first")
    await sdk(git.push("one", remote="origin", branch="main"))
    await sdk(git.clone("file:///home/user/hub.git", "two", branch="main", depth=1))
    await commit(sdk, "one", "second")
    status = await sdk(git.status("one"))
    assert (status.upstream, status.ahead, status.behind) == ("origin/main", 1, 0)
    await sdk(git.push("one"))
    await sdk(git.pull("two"))
    assert await sdk.run("ls two") == "first\nsecond\n"
    await sdk(git.create_branch("two", "lonely"))
    from e2b.exceptions import GitUpstreamException

    with pytest.raises(GitUpstreamException):
        await sdk(git.pull("two"))


async def test_a_public_server(sdk: Both) -> None:
    git = sdk.git
    await sdk(git.clone(f"{URL}/public.git"))
    assert await sdk.run("cat public/README") == "public\n"
    assert await sdk(git.remote_get("public", "origin")) == f"{URL}/public.git"
    with pytest.raises(Exception, match="not found"):
        await sdk(git.clone(f"{URL}/missing.git"))


# Rules: SDK-6
async def test_a_server_that_asks_who_is_there(sdk: Both) -> None:
    from e2b.exceptions import GitAuthException

    git = sdk.git
    url = f"{URL}/private.git"
    for credentials in ({}, {"username": "ada", "password": "wrong"}):
        with pytest.raises(GitAuthException):
            await sdk(git.clone(url, "refused", **credentials))
    ada = {"username": "ada", "password": "s3cret-Token_1"}
    await sdk(git.clone(url, "private", **ada))
    assert await sdk.run("cat private/README") == "private\n"
    # The credentials were for once.
    assert await sdk(git.remote_get("private", "origin")) == url
    await commit(sdk, "private", "more")
    with pytest.raises(GitAuthException):
        await sdk(git.push("private"))
    await sdk(git.push("private", **ada))
    assert await sdk(git.remote_get("private", "origin")) == url
    with pytest.raises(GitAuthException):
        await sdk(git.pull("private"))
    await sdk(git.pull("private", **ada))


async def test_credentials_that_are_kept(sdk: Both) -> None:
    git = sdk.git
    await sdk(
        git.dangerously_authenticate(
            "ada", "s3cret-Token_1", host="127.0.0.1:8123", protocol="http"
        )
    )
    await sdk(git.clone(f"{URL}/private.git", "private"))
    await commit(sdk, "private", "more")
    await sdk(git.push("private"))
    assert await sdk(git.get_config("credential.helper")) == "store"

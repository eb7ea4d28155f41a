"""Images of a registry as templates, and what becomes of builds whose image is not to be had."""

from __future__ import annotations

import hashlib
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from e2b import Sandbox, Template

from support import images
from support.images import Image, Layer, Tree
from support.registry import PASSWORD, USER, Registry
from support.sdk import newest, since
from support.templates import Builds, Steps, step

Create = Callable[..., Sandbox]


def shell(build: Builds, create: Create, template: Any) -> Callable[[str], str]:
    """What root's commands print in a sandbox of the template."""
    sandbox = create(template=build(template).name)
    return lambda command: sandbox.commands.run(command, user="root").stdout


def test_layers_of_each_kind_are_applied(build: Builds, create: Create, registry: Registry) -> None:
    run = shell(build, create, Template().from_image(registry.push("layers")))
    assert run("cd /data && ls -d removed tree opaque/old never-there 2>/dev/null || true") == ""
    assert run("cat /data/replaced /data/opaque/new /data/becomes-file") == "of layer 2\n" * 3
    assert run("cat /data/kept/file") == "of layer 1\n"
    # What replaced a link did not go where that led.
    assert run("ls -A /data/link-becomes-directory /data/kept | grep -c '^file$'") == "2\n"
    assert run("cat /data/kept/third /data/link-becomes-directory/file") == "linked\nof layer 2\n"
    assert run("stat -c '%h %a %u %g' /data/second") == "3 640 1234 4321\n"
    assert run("readlink /data/absolute; readlink /data/dangling") == "/data/first\nnowhere\n"
    assert run("cat '/data/spaces and ünicode' /data/nnn*/deep") == "named\na long name\n"
    assert run("stat -c %a /data/setuid /data/sticky") == "4755\n1777\n"
    # Devices are left out, pipes are not.
    assert run("cd /data && ls -d device disk 2>/dev/null || true") == ""
    assert run("stat -c %F /data/pipe") == "fifo\n"
    assert run("find / -xdev -name '.wh.*' 2>/dev/null | wc -l") == "0\n"


def test_the_image_for_this_machine_is_taken(
    build: Builds, create: Create, registry: Registry
) -> None:
    run = shell(build, create, Template().from_image(registry.push("many-arches")))
    assert run("cat /arch") == f"{images.ARCH}\n"


def test_references(build: Builds, create: Create, registry: Registry) -> None:
    reference = registry.push("busybox-musl")
    bare = reference.removesuffix(":test")
    layout = images.made("busybox-musl")
    (manifest,) = json.loads((layout / "index.json").read_text())["manifests"]
    run = shell(build, create, Template().from_image(f"{bare}@{manifest['digest']}"))
    assert "busybox-musl" in run("cat /etc/os-release")
    # Without a tag it is `latest`, which nobody has pushed.
    failed = build.fails(Template().from_image(bare))
    assert failed.step == "base"


@newest
def test_an_image_is_fetched_once(build: Builds, registry: Registry) -> None:
    reference = registry.push("busybox-musl")
    build(Template().from_image(reference).run_cmd("true"))
    again = build(Template().from_image(reference).run_cmd("true"))
    assert again.said(r"^CACHED \[base\] FROM |^\[base\] CACHED FROM |^CACHED \[builder .*RUN true")


@since("2.63.0", "the exec form of RUN")
def test_a_dockerfile(tmp_path: Path, build: Builds, create: Create, registry: Registry) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app/file").write_text("copied\n")
    dockerfile = f"""
FROM {registry.push("debian")}
LABEL maintainer=nobody
EXPOSE 8000
ARG VERSION=1.2
ENV NAME=app-$VERSION GREETING="hello there"
RUN echo "$NAME $GREETING $(id -un) $PWD" > /built
WORKDIR /srv/app
COPY app ./
COPY app/file again
ADD app/file /opt/added/
RUN ["sh", "-c", "echo exec form > form"]
USER worker
"""
    template = Template(file_context_path=tmp_path).from_dockerfile(dockerfile)
    sandbox = create(template=build(template).name)
    assert sandbox.files.read("/built") == "app-1.2 hello there root /\n"
    assert sandbox.commands.run("id -un; pwd; cat file form /opt/added/file").stdout == (
        "worker\n/srv/app\ncopied\nexec form\ncopied\n"
    )
    assert sandbox.commands.run("stat -c %U again file").stdout == "root\nroot\n"


@since("2.63.0", "flags of COPY, and files within a Dockerfile")
def test_flags_of_a_dockerfile(
    tmp_path: Path, build: Builds, create: Create, registry: Registry
) -> None:
    (tmp_path / "file").write_text("copied\n")
    dockerfile = f"""
FROM {registry.push("debian")}
COPY --chown=daemon --chmod=0640 file /srv/owned
COPY <<EOF /srv/written
by hand
EOF
RUN <<EOF
echo one > /srv/lines
echo two >> /srv/lines
EOF
"""
    template = Template(file_context_path=tmp_path).from_dockerfile(dockerfile)
    sandbox = create(template=build(template).name)
    assert sandbox.commands.run("stat -c '%a %U' /srv/owned").stdout == "640 daemon\n"
    assert sandbox.commands.run("cat /srv/written /srv/lines").stdout == "by hand\none\ntwo\n"


def test_a_dockerfile_that_says_no_user(build: Builds, create: Create, registry: Registry) -> None:
    dockerfile = f"FROM {registry.push('debian')}\nRUN touch /by-root\n"
    sandbox = create(template=build(Template().from_dockerfile(dockerfile)).name)
    assert sandbox.commands.run("id -un; pwd; stat -c %U /by-root").stdout == (
        "user\n/home/user\nroot\n"
    )


def test_credentials(build: Builds, create: Create, private_registry: Registry) -> None:
    reference = private_registry.push("busybox-musl")
    template = Template().from_image(reference, username=USER, password=PASSWORD)
    built = build(template)
    assert create(template=built.name).commands.run("id -un").stdout == "user\n"
    assert not built.said(PASSWORD)
    for wrong in (
        Template().from_image(reference),
        Template().from_image(reference, username=USER, password="open simsim"),
        Template().from_image(reference, username="writer", password=PASSWORD),
    ):
        failed = build.fails(wrong)
        assert failed.step == "base"
        assert "credentials" in failed.message or "401" in failed.message
        assert "simsim" not in str(failed.built.messages) + failed.message


@newest
def test_other_teams_do_not_get_a_private_image(build: Builds, private_registry: Registry) -> None:
    """Nor does anybody without the credentials, though its layers are here."""
    reference = private_registry.push("busybox-musl")
    build(Template().from_image(reference, username=USER, password=PASSWORD).run_cmd("true"))
    assert build.fails(Template().from_image(reference).run_cmd("true")).step == "base"


@pytest.mark.parametrize("name", ["atoll/no-such-image:test", "atoll/debian:no-such-tag"])
def test_an_unknown_image(build: Builds, registry: Registry, name: str) -> None:
    registry.push("debian")
    failed = build.fails(Template().from_image(f"{registry.address}/{name}").run_cmd("true"))
    assert failed.step == "base"
    assert name.partition(":")[0] in failed.message


@pytest.mark.parametrize("image", ["", "no good", "UPPER/Case", "a:b:c@d", "http://x/y"])
def test_a_reference_that_is_none(build: Builds, steps: Steps, image: str) -> None:
    """Said at once or by the build: not by a failure inside of Atoll."""
    built = steps.register()
    answer = steps.begin(built, fromImage=image, steps=[])
    if answer.status_code == 202:
        status = build.over(built)
        assert (status["status"], status["reason"]["step"]) == ("error", "base")
        assert "internal" not in status["reason"]["message"].lower()
    else:
        assert answer.status_code == 400, answer.text


@pytest.mark.parametrize(
    "image",
    [
        "127.0.0.1:1/atoll/x",
        "localhost:25999/atoll/x",
        "169.254.169.254/latest/meta-data",
        "10.0.0.1/atoll/x",
        "[::1]:5000/atoll/x",
        "192.168.1.1:5000/x",
    ],
)
def test_addresses_that_nobody_has_listed(build: Builds, image: str) -> None:
    failed = build.fails(Template().from_image(image))
    assert failed.step == "base"
    assert failed.reason["code"] == "ATL-5008"
    assert "--registry" in failed.message


def test_an_unknown_template(build: Builds, steps: Steps) -> None:
    built = steps.register()
    assert steps.begin(built, fromTemplate="no-such-template", steps=[]).status_code == 202
    status = build.over(built)
    assert (status["status"], status["reason"]["step"]) == ("error", "base")
    assert "no-such-template" in status["reason"]["message"]
    failed = build.fails(Template().from_template("no-such-template"))
    assert failed.step == "base"


def test_a_body_that_says_two_things(steps: Steps, registry: Registry) -> None:
    built = steps.register()
    both = steps.begin(built, fromTemplate="base", fromImage=registry.push("busybox-musl"))
    assert both.status_code == 400


class Altered:
    """A registry's blob with other content, for the time of a test."""

    def __init__(self, path: Path, content: bytes) -> None:
        self._path, self._content, self._before = path, content, path.read_bytes()

    def __enter__(self) -> None:
        self._path.write_bytes(self._content)

    def __exit__(self, *_: object) -> None:
        self._path.write_bytes(self._before)


def push(registry: Registry, directory: Path, name: str, *layers: Layer) -> tuple[str, str]:
    """An image of layers; its reference, and the digest of the last layer."""
    layout = directory / name
    images.write(layout, Image(list(layers)))
    digest = hashlib.sha256(layers[-1].compressed()).hexdigest()
    return registry.push_layout(layout, name), digest


@newest
def test_what_is_not_what_its_digest_says(
    tmp_path: Path, build: Builds, create: Create, registry: Registry
) -> None:
    # Of this run alone: what another has fetched under the digest would be used again.
    last = Layer(Tree().file("genuine", f"as it was made, {uuid4()} " * 100).tar(), "")
    reference, digest = push(registry, tmp_path, "altered", busybox(), last)
    changed = last.tar.replace(b"genuine", b"forgery")
    assert len(changed) == len(last.tar)
    with Altered(registry.blob(digest), changed):
        failed = build.fails(Template().from_image(reference))
        assert failed.step == "base"
        assert "digest" in failed.message
    # Nothing of it was kept.
    run = shell(build, create, Template().from_image(reference))
    assert run("ls /genuine") == "/genuine\n"


@newest
def test_a_layer_that_is_cut_off(tmp_path: Path, build: Builds, registry: Registry) -> None:
    whole = Layer(Tree().file("file", "x" * 100_000).tar())
    cut = gzip_cut(whole)
    reference, _ = push(registry, tmp_path, "cut-off", busybox(), cut)
    failed = build.fails(Template().from_image(reference))
    assert failed.step == "base"


def busybox() -> Layer:
    return images.busybox_musl()[0].layers[0]


def gzip_cut(layer: Layer) -> Layer:
    """A layer that ends in the middle, under a digest that is right."""
    data = layer.compressed()

    class Cut(Layer):
        def compressed(self) -> bytes:
            return data[: len(data) // 2]

    return Cut(layer.tar)


HOSTILE: dict[str, Tree] = {
    "parent": Tree().file("../../../../../../tmp/atoll-escaped", "x"),
    "parent-inside": Tree().directory("a").file("a/../../../tmp/atoll-escaped", "x"),
    "link-out": Tree().symlink("out", "/tmp").file("out/../../tmp/atoll-escaped", "x"),
    "hard-link-out": Tree().hardlink("stolen", "../../../../etc/passwd"),
    "whiteout-of-parent": Tree().directory("a").file("a/.wh...", ""),
}


@newest
@pytest.mark.parametrize("kind", HOSTILE)
def test_an_archive_that_leads_out_is_refused(
    tmp_path: Path, build: Builds, registry: Registry, kind: str
) -> None:
    layer = Layer(HOSTILE[kind].tar())
    reference, _ = push(registry, tmp_path, f"hostile-{kind}", busybox(), layer)
    failed = build.fails(Template().from_image(reference))
    assert failed.step == "base"
    assert failed.reason["code"] == "ATL-5007"
    entry = HOSTILE[kind].entries[-1][0]
    assert entry.name in failed.message or (entry.linkname and entry.linkname in failed.message)
    assert not Path("/tmp/atoll-escaped").exists()


@newest
def test_links_lead_no_further_than_the_tree(
    tmp_path: Path, build: Builds, create: Create, registry: Registry
) -> None:
    """As in honest images: /var/run is a link to /run, and a layer writes through it."""
    marker = "tmp/atoll-through-a-link"
    lower = Layer(Tree().symlink("through", "/../../../../tmp").symlink("sub", "/usr").tar())
    upper = Layer(Tree().file("through/atoll-through-a-link", "x").file("sub/added", "y").tar())
    reference, _ = push(registry, tmp_path, "links-within", busybox(), lower, upper)
    run = shell(build, create, Template().from_image(reference))
    assert run(f"ls /{marker} /usr/added 2>/dev/null | wc -l") in {"1\n", "2\n"}
    assert not Path(f"/{marker}").exists()


@newest
def test_what_is_no_archive(tmp_path: Path, build: Builds, registry: Registry) -> None:
    class Garbage(Layer):
        def compressed(self) -> bytes:
            return b"this is no archive " * 1000

    reference, _ = push(registry, tmp_path, "garbage", busybox(), Garbage(b""))
    assert build.fails(Template().from_image(reference)).step == "base"


@pytest.fixture
def broken(registry: Registry) -> Iterator[Registry]:
    """The registry, which the test may stop."""
    yield registry
    registry.stop()
    registry.start()


@newest
def test_a_registry_that_is_down(build: Builds, broken: Registry) -> None:
    reference = broken.push("many-arches")
    broken.stop()
    failed = build.fails(Template().from_image(reference).run_cmd("echo of-another-image"))
    assert failed.step == "base"
    assert broken.address in failed.message
    broken.start()
    build(Template().from_image(reference), failed.built.name)


class BreaksOff(socketserver.BaseRequestHandler):
    """A registry that goes away amid every answer."""

    def handle(self) -> None:
        self.request.recv(4096)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\n"
        self.request.sendall(head + b"Content-Length: 1000\r\n\r\n{")


@newest
def test_a_registry_that_goes_away_half_way(build: Builds, broken: Registry) -> None:
    reference = broken.push("busybox-musl").replace("busybox-musl", "half-way")
    broken.stop()
    host, port = broken.address.split(":")

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with Server((host, int(port)), BreaksOff) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        failed = build.fails(Template().from_image(reference))
        server.shutdown()
    assert failed.step == "base"


def test_steps_on_an_image(steps: Steps, create: Create, registry: Registry) -> None:
    todo = [step("RUN", "echo 1 > /home/user/one"), step("USER", "root")]
    built, status = steps(*todo, fromImage=registry.push("busybox-musl"))
    assert status["status"] == "ready", status
    assert create(template=built.name).commands.run("id -un; cat /home/user/one").stdout == (
        "root\n1\n"
    )

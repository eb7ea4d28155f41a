"""Images of operating systems, made on this machine, as OCI layouts below target/test-images.

Each is made of packages of Debian's by a recipe, and kept by a digest of that recipe: a change here
makes new ones. `RECIPES` has them by name:

- `debian`: what `debian:bookworm-slim` has, in one gzip layer.
- `busybox-musl`: Debian's busybox laid out as Alpine has it, with musl's loader: /bin/sh is ash,
  and there is no bash, no sudo, no useradd, no CA bundle. It stands in for Alpine.
- `rpm-like`: Debian's programs as Fedora lays them out: no apt or dpkg, CA certificates below
  /etc/pki, group wheel. It stands in for Fedora.
- `layers`: layers in each compression, with whiteouts, links, attributes and devices.
- `many-arches`: an index with an image for this machine, one for another, and an attestation.
- `scratch-like`: one program and no shell.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import platform
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from support import paths

HERE = paths.TARGET / "test-images"

#: The machine's architecture as images name it, and another.
ARCH, OTHER_ARCH = {
    "x86_64": ("amd64", "arm64"),
    "aarch64": ("arm64", "amd64"),
}[platform.machine()]

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OCI = "application/vnd.oci.image."
_TIME = 1_700_000_000


@dataclass
class Tree:
    """Entries of a layer, in the order in which they will be in its archive."""

    entries: list[tuple[tarfile.TarInfo, bytes]] = field(default_factory=list)

    def add(self, name: str, kind: bytes, data: bytes = b"", **fields: object) -> Tree:
        """Adds an entry; `fields` are those of `tarfile.TarInfo`."""
        info = tarfile.TarInfo(name)
        info.type, info.size, info.mtime = kind, len(data), _TIME
        info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
        for field_name, value in fields.items():
            setattr(info, field_name, value)
        self.entries.append((info, data))
        return self

    def directory(self, *names: str, mode: int = 0o755) -> Tree:
        for name in names:
            self.add(name, tarfile.DIRTYPE, mode=mode)
        return self

    def file(self, name: str, data: str | bytes, **fields: object) -> Tree:
        text = data.encode() if isinstance(data, str) else data
        return self.add(name, tarfile.REGTYPE, text, **fields)

    def symlink(self, name: str, target: str) -> Tree:
        return self.add(name, tarfile.SYMTYPE, linkname=target)

    def hardlink(self, name: str, target: str) -> Tree:
        return self.add(name, tarfile.LNKTYPE, linkname=target)

    def gone(self, *names: str) -> Tree:
        """Whiteouts."""
        for name in names:
            parent, _, last = name.rpartition("/")
            self.file(f"{parent}/.wh.{last}" if parent else f".wh.{last}", "")
        return self

    def opaque(self, name: str) -> Tree:
        """A directory of which the layers below have nothing any more."""
        return self.directory(name).file(f"{name}/.wh..wh..opq", "")

    def replace(self, name: str, data: str | bytes, **fields: object) -> Tree:
        """`file`, in place of an entry of that name."""
        self.entries = [entry for entry in self.entries if entry[0].name != name]
        return self.file(name, data, **fields)

    def without(self, *prefixes: str) -> Tree:
        """Without these paths and all below them."""
        inside = tuple(f"{prefix}/" for prefix in prefixes)
        return Tree(
            [
                entry
                for entry in self.entries
                if entry[0].name not in prefixes and not entry[0].name.startswith(inside)
            ]
        )

    def tar(self) -> bytes:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as out:
            for info, data in self.entries:
                out.addfile(info, io.BytesIO(data))
        return archive.getvalue()


@dataclass
class Layer:
    """A layer as it is in a registry."""

    tar: bytes
    #: "gzip", "zstd" or "".
    compression: str = "gzip"

    def compressed(self) -> bytes:
        if self.compression == "gzip":
            return gzip.compress(self.tar, compresslevel=1, mtime=0)
        if self.compression == "zstd":
            return subprocess.run(
                ["zstd", "-q", "-c"], input=self.tar, check=True, capture_output=True
            ).stdout
        return self.tar

    @property
    def media_type(self) -> str:
        return f"{_OCI}layer.v1.tar" + (f"+{self.compression}" if self.compression else "")


@dataclass
class Image:
    """An image for one architecture."""

    layers: list[Layer]
    arch: str = ARCH
    config: dict[str, object] = field(default_factory=lambda: {"Env": [_PATH], "Cmd": ["/bin/sh"]})


class Layout:
    """An OCI layout that is being written."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        (directory / "blobs/sha256").mkdir(parents=True)
        (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data: bytes, media_type: str) -> dict[str, object]:
        """Writes a blob, and gives its descriptor."""
        digest = hashlib.sha256(data).hexdigest()
        (self._directory / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def document(self, media_type: str, **fields: object) -> dict[str, object]:
        """Writes a manifest or an index."""
        body = {"schemaVersion": 2, "mediaType": media_type, **fields}
        return self.blob(json.dumps(body).encode(), media_type)

    def image(self, image: Image) -> dict[str, object]:
        """Writes an image, and gives the descriptor of its manifest."""
        layers = [self.blob(layer.compressed(), layer.media_type) for layer in image.layers]
        diffs = [f"sha256:{hashlib.sha256(layer.tar).hexdigest()}" for layer in image.layers]
        config = {
            "architecture": image.arch,
            "os": "linux",
            "config": image.config,
            "rootfs": {"type": "layers", "diff_ids": diffs},
        }
        described = self.blob(json.dumps(config).encode(), f"{_OCI}config.v1+json")
        manifest = self.document(f"{_OCI}manifest.v1+json", config=described, layers=layers)
        return manifest | {"platform": {"os": "linux", "architecture": image.arch}}

    def finish(self, top: dict[str, object]) -> None:
        """Makes this the layout's image."""
        named = top | {"annotations": {"org.opencontainers.image.ref.name": "latest"}}
        index = {"schemaVersion": 2, "manifests": [named]}
        (self._directory / "index.json").write_text(json.dumps(index))


def write(directory: Path, *images: Image) -> None:
    """Writes a layout with one image, or with an index of several and an attestation."""
    layout = Layout(directory)
    manifests = [layout.image(image) for image in images]
    if len(manifests) == 1:
        layout.finish(manifests[0])
        return
    # As `docker buildx` adds one to each index.
    attestation = layout.image(Image([Layer(Tree().file("statement.json", "{}").tar())], "unknown"))
    attestation["platform"] = {"os": "unknown", "architecture": "unknown"}
    index = layout.document(f"{_OCI}index.v1+json", manifests=[*manifests, attestation])
    layout.finish(index)


def _mmdebstrap(variant: str, *packages: str) -> Tree:
    """A tree of Debian's packages, without what images leave out of them."""
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{d}/*" for d in ("man", "doc", "locale")]
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        command = [
            *("mmdebstrap", "--quiet", "--mode=root", f"--variant={variant}", *excluded),
            *('--aptopt=Acquire::Languages "none"', "--dpkgopt=force-unsafe-io"),
            *(f"--include={','.join(packages)}", "bookworm", archive.name),
        ]
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert ran.returncode == 0, f"{command} failed:\n{ran.stderr[-2000:]}"
        return _read(Path(archive.name))


def _read(archive: Path) -> Tree:
    tree = Tree()
    with tarfile.open(archive) as members:
        for info in members:
            name = info.name.removeprefix("./")
            if name in {"", "."}:
                continue
            file = members.extractfile(info) if info.isreg() else None
            info.name = name
            if info.islnk():
                info.linkname = info.linkname.removeprefix("./")
            tree.entries.append((info, file.read() if file else b""))
    return tree


@cache
def _debian() -> Tree:
    """Kept as an archive too: two recipes begin with it."""
    packages = ("ca-certificates",)
    kept = HERE / f"minbase-{'-'.join(packages)}.tar"
    if not kept.exists():
        tree = _mmdebstrap("minbase", *packages)
        tree = tree.without("var/lib/apt/lists", "var/cache/apt", "etc/resolv.conf")
        HERE.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(".partial")
        partial.write_bytes(tree.tar())
        partial.rename(kept)
    return _read(kept)


@cache
def _busybox() -> bytes:
    tree = _mmdebstrap("extract", "busybox-static")
    return next(data for info, data in tree.entries if info.name.endswith("bin/busybox"))


def _busybox_root() -> Tree:
    """A root with busybox's programs as links to it."""
    tree = Tree().directory(
        *("bin", "dev", "etc", "home", "lib", "proc", "sbin", "sys", "usr", "usr/bin"),
        *("usr/lib", "usr/local", "usr/local/bin", "usr/sbin", "usr/share", "var", "var/log"),
    )
    tree.directory("root", mode=0o700).directory("tmp", "var/tmp", mode=0o1777)
    tree.directory("run").file("bin/busybox", _busybox(), mode=0o755)
    for path in _applets():
        if path != "bin/busybox" and path.rpartition("/")[0] in {"bin", "sbin", "usr/bin"}:
            tree.symlink(path, "/bin/busybox")
    tree.file("etc/passwd", "root:x:0:0:root:/root:/bin/ash\nnobody:x:65534:65534::/:/bin/false\n")
    tree.file("etc/shadow", "root:*::0:::::\nnobody:!::0:::::\n", mode=0o640)
    tree.file("etc/group", "root:x:0:root\nwheel:x:10:root\nnobody:x:65534:\n")
    tree.file("etc/profile", f"export {_PATH}\n")
    return tree


def _applets() -> list[str]:
    """Where busybox's programs belong, without the leading slash."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "busybox"
        program.write_bytes(_busybox())
        program.chmod(0o755)
        listed = subprocess.run(
            [program, "--list-full"], check=True, capture_output=True, text=True
        ).stdout
    return [line.strip().lstrip("/") for line in listed.splitlines() if line.strip()]


def debian() -> list[Image]:
    return [Image([Layer(_debian().tar())], config={"Env": [_PATH], "Cmd": ["bash"]})]


def busybox_musl() -> list[Image]:
    tree = _busybox_root()
    musl = _mmdebstrap("extract", "musl")
    tree.entries += [
        entry for entry in musl.entries if "ld-musl" in entry[0].name or "musl/" in entry[0].name
    ]
    tree.directory("lib/apk", "etc/apk").file("lib/apk/installed", "")
    tree.file("etc/alpine-release", "3.0.0\n")
    tree.file(
        "etc/os-release",
        'NAME="busybox and musl of Debian"\nID=alpine\nVERSION_ID=3.0.0\n'
        'PRETTY_NAME="busybox-musl, standing in for Alpine"\n',
    )
    return [Image([Layer(tree.tar())])]


def rpm_like() -> list[Image]:
    tree = _debian().without(
        *("etc/apt", "etc/dpkg", "usr/lib/apt", "usr/lib/dpkg", "usr/share/dpkg", "var/lib/apt"),
        *("var/lib/dpkg", "var/cache", "etc/debian_version", "etc/ssl", "usr/lib/ssl"),
        *(f"usr/bin/{name}" for name in ("apt", "apt-get", "apt-cache", "apt-key", "dpkg")),
        *("etc/os-release", "usr/lib/os-release", "usr/sbin/update-ca-certificates"),
    )
    bundle = "".join(
        data.decode()
        for info, data in _debian().entries
        if info.name.startswith("usr/share/ca-certificates/mozilla/") and info.isreg()
    )
    pem = "etc/pki/ca-trust/extracted/pem"
    tree.directory("etc/pki", "etc/pki/ca-trust", "etc/pki/ca-trust/extracted", pem)
    tree.directory("etc/pki/tls", "etc/pki/tls/certs").file(f"{pem}/tls-ca-bundle.pem", bundle)
    tree.symlink("etc/pki/tls/certs/ca-bundle.crt", f"/{pem}/tls-ca-bundle.pem")
    tree.directory("etc/ssl").symlink("etc/ssl/certs", "/etc/pki/tls/certs")
    tree.file(
        "usr/lib/os-release",
        'NAME="Debian\'s packages"\nID=fedora\nVERSION_ID=44\nPLATFORM_ID="platform:f44"\n'
        'PRETTY_NAME="rpm-like, standing in for Fedora"\n',
    )
    tree.symlink("etc/os-release", "../usr/lib/os-release").file("etc/fedora-release", "44\n")
    groups = next(data for info, data in tree.entries if info.name == "etc/group").decode()
    kept = [line for line in groups.splitlines() if not line.startswith(("sudo:", "staff:"))]
    tree.replace("etc/group", "\n".join([*kept, "wheel:x:10:"]) + "\n")
    return [Image([Layer(tree.tar())], config={"Env": [_PATH], "Cmd": ["/bin/bash"]})]


def layers() -> list[Image]:
    plain = _busybox_root().directory("data", "data/kept", "data/opaque")
    plain.file("data/removed", "of layer 1\n").file("data/replaced", "of layer 1\n")
    plain.file("data/opaque/old", "of layer 1\n").file("data/kept/file", "of layer 1\n")
    plain.directory("data/tree").file("data/tree/below", "of layer 1\n")
    plain.directory("data/becomes-file").file("data/becomes-file/x", "")
    plain.symlink("data/link-becomes-directory", "kept")
    zstd = Tree().gone("data/removed", "data/tree", "data/never-there")
    zstd.file("data/replaced", "of layer 2\n").opaque("data/opaque")
    zstd.file("data/opaque/new", "of layer 2\n")
    zstd.file("data/becomes-file", "of layer 2\n")
    zstd.directory("data/link-becomes-directory")
    zstd.file("data/link-becomes-directory/file", "of layer 2\n")
    zipped = Tree().file("data/first", "linked\n", mode=0o640, uid=1234, gid=4321)
    zipped.hardlink("data/second", "data/first").hardlink("data/kept/third", "data/first")
    zipped.symlink("data/absolute", "/data/first").symlink("data/dangling", "nowhere")
    zipped.file(
        "data/attributes", "", pax_headers={"SCHILY.xattr.user.test": "kept", "mtime": "1.5"}
    )
    zipped.file("data/setuid", "", mode=0o4755).directory("data/sticky", mode=0o1777)
    zipped.add("data/device", tarfile.CHRTYPE, devmajor=1, devminor=3)
    zipped.add("data/disk", tarfile.BLKTYPE, devmajor=7, devminor=0)
    zipped.add("data/pipe", tarfile.FIFOTYPE)
    zipped.directory(f"data/{'n' * 180}").file(f"data/{'n' * 180}/deep", "a long name\n")
    zipped.file("data/spaces and ünicode", "named\n")
    layered = [Layer(plain.tar(), ""), Layer(zstd.tar(), "zstd"), Layer(zipped.tar(), "gzip")]
    return [Image(layered)]


def many_arches() -> list[Image]:
    return [
        Image([Layer(_busybox_root().file("arch", f"{OTHER_ARCH}\n").tar())], OTHER_ARCH),
        Image([Layer(_busybox_root().file("arch", f"{ARCH}\n").tar())], ARCH),
    ]


def scratch_like() -> list[Image]:
    tree = Tree().directory("app", "etc").file("app/server", _busybox(), mode=0o755)
    tree.file("etc/passwd", "root:x:0:0:root:/:/sbin/nologin\n")
    return [Image([Layer(tree.tar())], config={"Entrypoint": ["/app/server"]})]


RECIPES: dict[str, Callable[[], list[Image]]] = {
    "debian": debian,
    "busybox-musl": busybox_musl,
    "rpm-like": rpm_like,
    "layers": layers,
    "many-arches": many_arches,
    "scratch-like": scratch_like,
}


def made(name: str) -> Path:
    """The layout of an image, made if it is not there."""
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    directory = HERE / f"{name}-{recipe}"
    if not directory.exists():
        for old in _siblings(name):
            shutil.rmtree(old, ignore_errors=True)
        HERE.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=HERE))
        write(partial, *RECIPES[name]())
        try:
            partial.rename(directory)
        except OSError as error:
            # Where another run was faster, its is as good.
            if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                raise
            shutil.rmtree(partial)
    return directory


def _siblings(name: str) -> Iterator[Path]:
    """What earlier recipes made of it."""
    for path in HERE.glob(f"{name}-*"):
        if path.is_dir() and len(path.name) == len(name) + 17:
            yield path

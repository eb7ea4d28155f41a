"""Building templates with whichever SDK the tests run with."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from e2b import BuildException, LogEntry, Template
from e2b.template.types import BuildInfo

from support.wait import wait_for

#: A build may wait for others, and has a step that takes long in no test.
BUILD_SECONDS = 120

OVER = {"ready", "error"}

_IDS = re.compile(r"Template created with ID: (\S+), Build ID: (\S+)")


@dataclass
class Built:
    """A build that the SDK began."""

    template_id: str
    build_id: str
    name: str
    logs: list[LogEntry] = field(default_factory=list)

    @property
    def messages(self) -> list[str]:
        return [entry.message for entry in self.logs]

    def said(self, pattern: str) -> list[str]:
        """Lines of the log in which the pattern is found."""
        return [message for message in self.messages if re.search(pattern, message)]

    @property
    def info(self) -> BuildInfo:
        """As the SDK's methods want it."""
        known = {"alias": self.name, "name": self.name}
        fields = {key: known[key] for key in known if key in BuildInfo.__dataclass_fields__}
        return BuildInfo(template_id=self.template_id, build_id=self.build_id, **fields)


@dataclass
class Failed:
    """A build that the SDK raised an exception for."""

    error: BaseException
    built: Built
    #: As the API has it.
    reason: dict[str, Any]

    @property
    def step(self) -> str:
        return self.reason["step"]

    @property
    def message(self) -> str:
        return self.reason["message"]


class Builds:
    """Builds templates, and deletes them at the end; sandboxes of them first."""

    def __init__(self, api: httpx.Client) -> None:
        self._api = api
        self._names: list[str] = []

    def name(self) -> str:
        """A name that no template has."""
        self._names.append(f"conformance-{secrets.token_hex(6)}")
        return self._names[-1]

    def __call__(self, template: Any, name: str | None = None, **options: Any) -> Built:
        """Builds it, and returns when that is done."""
        logs: list[LogEntry] = []
        name = name or self.name()
        info = Template.build(template, name, on_build_logs=logs.append, **options)
        return Built(info.template_id, info.build_id, name, logs)

    def start(self, template: Any, name: str | None = None, **options: Any) -> Built:
        """Begins to build it."""
        logs: list[LogEntry] = []
        name = name or self.name()
        info = Template.build_in_background(template, name, on_build_logs=logs.append, **options)
        return Built(info.template_id, info.build_id, name, logs)

    def fails(self, template: Any, name: str | None = None, **options: Any) -> Failed:
        """Builds it, which must fail as builds do."""
        logs: list[LogEntry] = []
        name = name or self.name()
        with pytest.raises(BuildException) as raised:
            Template.build(template, name, on_build_logs=logs.append, **options)
        found = [match for entry in logs if (match := _IDS.search(entry.message))]
        assert found, f"it was not even registered: {raised.value}"
        built = Built(found[0][1], found[0][2], name, logs)
        answer = self.status(built)
        assert answer["status"] == "error", answer
        assert answer["reason"]["message"] in str(raised.value)
        return Failed(raised.value, built, answer["reason"])

    def status(self, built: Built, **query: Any) -> dict[str, Any]:
        """What the API says of it."""
        path = f"/templates/{built.template_id}/builds/{built.build_id}/status"
        answer = self._api.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def over(self, built: Built, seconds: float = BUILD_SECONDS) -> dict[str, Any]:
        """Waits for its end, and gives what the API says then."""

        def look() -> dict[str, Any] | None:
            status = self.status(built)
            return status if status["status"] in OVER else None

        return wait_for("the end of the build", look, seconds)

    def until(self, built: Built, text: str, seconds: float = BUILD_SECONDS) -> None:
        """Waits for a line of its log."""

        def look() -> bool:
            entries = self.status(built)["logEntries"]
            return any(text in entry["message"] for entry in entries)

        wait_for(f"{text!r} in the log", look, seconds)

    def cancel(self, built: Built) -> None:
        answer = self._api.delete(f"/atoll/templates/builds/{built.build_id}")
        assert answer.status_code == 204, answer.text

    def delete(self, reference: str) -> httpx.Response:
        return self._api.delete(f"/templates/{reference}")

    def clean(self) -> None:
        """Deletes all."""
        for name in self._names:
            for sandbox in self._api.get("/v2/sandboxes", params={"template": name}).json():
                self._api.delete(f"/sandboxes/{sandbox['sandboxID']}")
            answer = self.delete(name)
            assert answer.status_code in {204, 404}, answer.text


class Steps:
    """A build as a client sends it that is no SDK: `POST /v3/templates`, then the build."""

    def __init__(self, api: httpx.Client, builds: Builds) -> None:
        self._api, self._builds = api, builds

    def register(self, name: str | None = None, **body: Any) -> Built:
        name = name or self._builds.name()
        answer = self._api.post("/v3/templates", json={"name": name, **body})
        assert answer.status_code == 202, answer.text
        made = answer.json()
        return Built(made["templateID"], made["buildID"], name)

    def begin(self, built: Built, headers: dict[str, str] | None = None, **body: Any) -> Any:
        """Starts a registered build; the answer."""
        path = f"/v2/templates/{built.template_id}/builds/{built.build_id}"
        if not body.keys() & {"fromImage", "fromTemplate"}:
            body["fromTemplate"] = "base"
        return self._api.post(path, json=body, headers=headers)

    def __call__(self, *steps: dict[str, Any], **options: Any) -> tuple[Built, dict[str, Any]]:
        """Builds these steps on `base`; the build, and the status it ends with."""
        built = self.register()
        answer = self.begin(built, steps=list(steps), **options)
        assert (answer.status_code, answer.content) == (202, b""), answer.text
        return built, self._builds.over(built)


def step(kind: str, *args: str, **fields: Any) -> dict[str, Any]:
    """A step as the API has it."""
    return {"type": kind, "args": list(args), **fields}

"""Templates with a code interpreter of their own: other kernels, and less than all."""

from __future__ import annotations

from collections.abc import Callable

from e2b import Template
from e2b_code_interpreter import Sandbox

from support import routing
from support.interpreter import TEMPLATE, http, out, still_works, stream, value
from support.sdk import newest
from support.templates import Builds

Create = Callable[..., Sandbox]

pytestmark = newest

#: Commands of a template run as its user, and this one is root's to run.
START = "exec sudo -EH code-interpreter"
READY = "curl -sf http://localhost:49999/health"


# Rules: INT-35, INT-7
def test_a_kernel_that_a_template_installs(build: Builds, create_interpreter: Create) -> None:
    template = (
        Template()
        .from_template(TEMPLATE)
        .run_cmd("pip install -q --root-user-action=ignore calysto_scheme==2.1.9", user="root")
        .run_cmd("python3 -m calysto_scheme install", user="root")
        .set_start_cmd(START, READY)
    )
    sandbox = create_interpreter(template=build(template).name)
    # Its name is that of its directory.
    assert sandbox.run_code("(define x 41)", language="calysto_scheme").error is None
    execution = sandbox.run_code('(display "hi") (+ x 1)', language="Calysto_Scheme")
    assert (out(execution), value(execution)) == ("hi", "42")
    failed = sandbox.run_code("(car 1)", language="calysto_scheme")
    assert failed.error is not None
    # By the language it says that it is for, too; that is another context.
    made = sandbox.create_code_context(language="scheme", cwd="/tmp")
    assert (made.language, made.cwd) == ("scheme", "/tmp")
    assert sandbox.run_code("x", context=made).error is not None
    assert value(sandbox.run_code("(* 6 7)", context=made)) == "42"
    # The others are as they were.
    still_works(sandbox)
    still_works(sandbox, language="javascript")


# Rules: INT-35
def test_a_kernel_that_knows_only_ports(build: Builds, create_interpreter: Create) -> None:
    template = (
        Template()
        .from_template(TEMPLATE)
        .run_cmd("pip install -q --root-user-action=ignore deno==2.9.8", user="root")
        .run_cmd("deno jupyter --install", user="root")
        .set_start_cmd(START, READY)
    )
    sandbox = create_interpreter(template=build(template).name)
    assert sandbox.run_code("let x: number = 41", language="deno").error is None
    execution = sandbox.run_code("console.log(++x); throw new TypeError('no')", language="deno")
    assert execution.logs.stdout == ["42\n"]
    assert execution.error is not None and execution.error.name == "TypeError"
    # Nobody outside finds its ports: what is on them is not for the world.
    listening = sandbox.commands.run("ss -Hltn 'src 127.49.0.0/16' | awk '{print $4}'", user="root")
    ports = {int(line.rpartition(":")[2]) for line in listening.stdout.split()}
    assert len(ports) == 5
    for port in ports:
        with routing.client(sandbox.sandbox_id, port) as client:
            answer = client.get("/")
        assert (answer.status_code, answer.json()["port"]) == (502, port)


#: A kernel in a few lines, on ipykernel's base class, that does what kernels may do and few do.
SHOUT = """
import time
from ipykernel.kernelbase import Kernel
from ipykernel.kernelapp import IPKernelApp

class Shout(Kernel):
    implementation = language = "shout"
    implementation_version = banner = "1"
    language_info = {"name": "shout", "mimetype": "text/plain", "file_extension": ".shout"}

    def do_execute(self, code, silent, store_history=True, *args, **options):
        if code == "WAIT":
            try:
                stream = {"name": "stdout", "text": "waiting"}
                self.send_response(self.iopub_socket, "stream", stream)
                time.sleep(300)
            except KeyboardInterrupt:
                code = "interrupted"
        self.send_response(self.iopub_socket, "clear_output", {"wait": False})
        self.send_response(self.iopub_socket, "odd_message", {"odd": True})
        if not silent:
            stream = {"name": "stdout", "text": code.upper()}
            self.send_response(self.iopub_socket, "stream", stream)
        return {"status": "ok", "execution_count": self.execution_count, "payload": [],
                "user_expressions": {}}

IPKernelApp.launch_instance(kernel_class=Shout)
"""


# Rules: INT-35, INT-25
def test_a_kernel_of_ones_own(build: Builds, create_interpreter: Create) -> None:
    spec = (
        '{"argv": ["python3", "/opt/shout.py", "-f", "{connection_file}"],'
        ' "display_name": "Shout", "language": "shout", "env": {"SHOUT": "1"}}'
    )
    kernel = "/usr/local/share/jupyter/kernels/shout-1"
    template = (
        Template()
        .from_template(TEMPLATE)
        .run_cmd(
            f"mkdir -p {kernel} && cat > {kernel}/kernel.json <<'E'\n{spec}\nE\n"
            f"cat > /opt/shout.py <<'E'\n{SHOUT}\nE",
            user="root",
        )
        .set_start_cmd(START, READY)
    )
    sandbox = create_interpreter(template=build(template).name)
    execution = sandbox.run_code("loud", language="shout-1")
    assert (out(execution), execution.execution_count) == ("LOUD", 1)
    made = sandbox.create_code_context(language="shout-1")
    with http(sandbox) as client, http(sandbox) as other:
        told = stream(client, "WAIT", context_id=made.id)
        assert any(event.get("text") == "waiting" for event in told)
        assert other.post(f"/contexts/{made.id}/interrupt").status_code == 200
        assert "INTERRUPTED" in [event.get("text") for event in told]
    assert out(sandbox.run_code("again", context=made)) == "AGAIN"


# Rules: INT-36, INT-10
def test_a_template_without_python_kernels(build: Builds, create_interpreter: Create) -> None:
    """Any template can start it: `base` has Node and Bash."""
    template = Template().from_base_image().set_start_cmd(START, READY)
    sandbox = create_interpreter(template=build(template).name)
    still_works(sandbox, language="javascript")
    still_works(sandbox, language="typescript")
    still_works(sandbox, language="bash")
    # What is missing, it says, in whichever way an SDK shows.
    with http(sandbox) as client:
        answer = client.post("/execute", json={"code": "1 + 1"})
        assert (answer.status_code, "ipykernel" in answer.text) == (500, True)
        assert client.post("/contexts", json={"language": "python"}).status_code == 500
    # Once it is there, Python works.
    sandbox.commands.run(
        "pip install -q --break-system-packages --root-user-action=ignore ipykernel",
        user="root",
        timeout=600,
    )
    still_works(sandbox)

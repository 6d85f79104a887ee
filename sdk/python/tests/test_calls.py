"""What the clients run, and what they make of the output."""

from __future__ import annotations

import asyncio
import inspect
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import threading
import unittest
import unittest.mock
from collections.abc import AsyncIterator, Iterator
from typing import Any

import banger
from banger import AsyncBanger, AsyncSandbox, Banger, Sandbox
from banger import _async_client, _async_process, _calls, _client
from banger._codes import BY_CODE
from banger._async_process import AsyncInput
from banger._process import Input, check_version

from .stand_in import ID, PROGRAM, SANDBOX, StandIn, error


class Case(unittest.TestCase):
    def stand_in(self, *plan: dict[str, Any]) -> StandIn:
        stand_in = StandIn(*plan)
        self.addCleanup(stand_in.close)
        return stand_in

    def sandbox(self) -> Sandbox:
        return Banger(str(PROGRAM)).get("web")

    def interrupt_once_started(self, stand_in: StandIn) -> None:
        def interrupt() -> None:
            stand_in.wait_for_start()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        threading.Thread(target=interrupt).start()

    async def async_sandbox(self) -> AsyncSandbox:
        return await AsyncBanger(str(PROGRAM)).get("web")


class Arguments(Case):
    def test_options_of_a_creation_are_those_of_the_command(self) -> None:
        stand_in = self.stand_in()
        sandbox = Sandbox.create(
            client=Banger(str(PROGRAM)),
            name="web",
            image="alpine:3",
            vcpus=2,
            memory=1 << 30,
            root_size="20GiB",
            nat=False,
            egress=["packages", "github.com:443"],
            publish=[80, "8080:81"],
            labels={"team": "a b", "x": ""},
            autostart=True,
            start=False,
        )
        self.assertEqual((sandbox.id, sandbox.name), (ID, "web"))
        expect = (
            "vm create -q --name=web --image=alpine:3 --vcpu=2 --memory=1073741824B --root-size=20GiB --egress=packages "
            "--egress=github.com:443 --publish=80 --publish=8080:81"
        ).split() + ["--label=team=a b", "--label=x=", "--no-start", "--no-nat", "--autostart", "--json", "--"]
        self.assertEqual(stand_in.arguments(), expect)

    def test_an_empty_policy_is_nothing_and_a_text_is_no_list(self) -> None:
        stand_in = self.stand_in()
        client = Banger(str(PROGRAM))
        client.create(egress=[])
        self.assertIn("--egress=none", stand_in.arguments())
        client.create()
        self.assertEqual(stand_in.arguments(), ["vm", "create", "-q", "--json", "--"])
        with self.assertRaises(TypeError):
            client.create(egress="github.com")
        with self.assertRaises(TypeError):
            client.create(publish="8080:80")
        with self.assertRaises(TypeError):
            client.list(filters="state=running")
        with self.assertRaises(TypeError):
            self.sandbox().workspace.prepare("/r", include="src")

    def test_a_command_is_passed_word_by_word(self) -> None:
        words = ["printf", "a b", "", "$HOME", "--", "-x", "new\nline", "*"]
        stand_in = self.stand_in()
        self.sandbox().exec(*words, user="dev", workdir="/srv", share=["ssh-agent"], proxy=False)
        expect = ["vm", "exec", "--no-tty", "--no-stdin", "--user=dev", "--workdir=/srv", "--share=ssh-agent", "--no-proxy"]
        self.assertEqual(stand_in.arguments(), [*expect, "--", ID, *words])
        self.sandbox().exec("cat", input="x")
        self.assertEqual(stand_in.arguments(), ["vm", "exec", "--no-tty", "--", ID, "cat"])
        with self.assertRaises(ValueError):
            self.sandbox().exec()

    def test_variables_are_on_no_command_line(self) -> None:
        stand_in = self.stand_in()
        self.sandbox().exec("env", env={"TOKEN": " s3cret ", "LD_LIBRARY_PATH": "two\r\nlines", "PATH": "/x\n"})
        call = stand_in.calls()[-1]
        self.assertEqual(call["variables"], "TOKEN= s3cret \0LD_LIBRARY_PATH=two\r\nlines\0PATH=/x\n\0")
        # What banger itself does, is for its user to say.
        self.assertEqual(call["environment"]["PATH"], os.environ["PATH"])
        self.assertNotIn("two\r\nlines", call["environment"].values())
        self.assertNotIn("s3cret", " ".join(call["arguments"]))
        for name, value in {"": "x", "a=b": "x", "a b": "x", "#a": "x", "a": "\0"}.items():
            with self.assertRaises(ValueError, msg=name):
                self.sandbox().exec("env", env={name: value})

    def test_each_method_runs_its_verb(self) -> None:
        outcome = json.dumps([{"reference": "x", "id": ID, "done": "stopped", "changed": True, "error": None}])
        verbs = ["start", "stop", "restart", "pause", "unpause", "suspend", "resume", "fork"]
        rows = {"vm files", "vm ports", "vm publish", "vm commands", "vm snapshot list"}
        plan = [{"when": ["vm", verb], "stdout": outcome} for verb in verbs]
        plan += [{"when": verb.split(), "stdout": "[]"} for verb in rows]
        plan += [{"when": ["vm", "stats"], "stdout": "[{}]"}, {"when": ["vm", "rename"], "stdout": json.dumps(SANDBOX)}]
        stand_in = self.stand_in(*plan)
        sandbox = self.sandbox()
        for act, expect in [
            (lambda: sandbox.start(wait="boot"), f"vm start -q --wait=boot --json -- {ID}"),
            (lambda: sandbox.stop(timeout=3), f"vm stop -q --timeout=3 --json -- {ID}"),
            (lambda: sandbox.stop(force=True), f"vm stop -q --force --json -- {ID}"),
            (lambda: sandbox.restart(), f"vm restart -q --json -- {ID}"),
            (lambda: sandbox.pause(), f"vm pause --json -- {ID}"),
            (lambda: sandbox.unpause(), f"vm unpause --json -- {ID}"),
            (lambda: sandbox.suspend(), f"vm suspend -q --json -- {ID}"),
            (lambda: sandbox.resume(), f"vm resume -q --json -- {ID}"),
            (lambda: sandbox.rename("db"), f"vm rename --json -- {ID} db"),
            (lambda: sandbox.delete(), f"vm delete -q --force --json -- {ID}"),
            (lambda: sandbox.snapshot("-x"), f"vm snapshot create -q --json -- {ID} -x"),
            (lambda: sandbox.snapshots(), f"vm snapshot list --json -- {ID}"),
            (lambda: sandbox.delete_snapshot("x"), f"vm snapshot delete -- {ID} x"),
            (lambda: sandbox.stats(), f"vm stats --json -- {ID}"),
            (lambda: sandbox.logs(tail=5, exec=2), f"vm logs --raw --tail=5 --exec=2 -- {ID}"),
            (lambda: sandbox.commands(), f"vm commands --json -- {ID}"),
            (lambda: sandbox.files.list("/srv", recursive=True), f"vm files --recursive --json -- {ID} /srv"),
            (lambda: sandbox.files.upload("/a/.", "/b/", chown="dev"), f"vm cp -q --chown=dev -- /a/. {ID}:/b/"),
            (lambda: sandbox.files.download("c", "/"), f"vm cp -q -- {ID}:c /"),
            (lambda: sandbox.ports.list(), f"vm ports --json -- {ID}"),
            (lambda: sandbox.ports.published(), f"vm publish --json -- {ID}"),
            (lambda: sandbox.ports.publish(80, "81:82"), f"vm publish --json -- {ID} 80 81:82"),
            (lambda: sandbox.ports.unpublish(8080), f"vm unpublish -- {ID} 8080"),
            (lambda: sandbox.egress.show(), f"vm egress --json -- {ID}"),
            (lambda: sandbox.egress.allow("a", "b:1"), f"vm egress allow -- {ID} a b:1"),
            (lambda: sandbox.egress.deny("a"), f"vm egress deny -- {ID} a"),
            (
                lambda: sandbox.workspace.prepare("/r", branch="x", include_untracked=True),
                f"vm workspace prepare -q --branch=x --include-untracked --json -- {ID} /r",
            ),
            (lambda: sandbox.workspace.export(apply=True), f"vm workspace export -q --apply --json -- {ID}"),
            (lambda: sandbox.workspace.fetch(branch="x"), f"vm workspace fetch -q --branch=x --json -- {ID}"),
        ]:
            act()  # type: ignore[no-untyped-call]
            self.assertEqual(stand_in.arguments(), expect.split())
        forks = sandbox.fork(count=2, names=["a", "b"], from_snapshot="s")
        self.assertEqual([fork.id for fork in forks], [ID])
        fork = next(call["arguments"] for call in stand_in.calls() if call["arguments"][1] == "fork")
        self.assertEqual(fork, f"vm fork -q --count=2 --name=a --name=b --from-snapshot=s --json -- {ID}".split())
        with self.assertRaises(ValueError):
            sandbox.ports.publish()

    def test_a_path_of_the_host_is_taken_for_no_path_in_a_sandbox(self) -> None:
        stand_in = self.stand_in()
        self.sandbox().files.upload("web:x", "/b")
        self.assertEqual(stand_in.arguments()[-2], f"{os.getcwd()}/web:x")

    def test_the_end_of_a_path_of_the_host_keeps_its_meaning(self) -> None:
        here, above = os.getcwd(), os.path.dirname(os.getcwd())
        for path, expect in [
            (".", f"{here}/."),
            ("..", f"{above}/."),
            ("src/.", f"{here}/src/."),
            ("src/..", f"{here}/."),
            ("src/", f"{here}/src/"),
            ("src", f"{here}/src"),
            ("/", "/"),
        ]:
            self.assertEqual(_calls.host_path(path), expect)

    def test_the_block_of_a_sandbox_deletes_it(self) -> None:
        stand_in = self.stand_in()
        with self.assertRaises(KeyError), self.sandbox():
            raise KeyError
        self.assertEqual(stand_in.arguments()[:2], ["vm", "delete"])

    def test_a_sandbox_without_its_workspace_is_deleted(self) -> None:
        stand_in = self.stand_in({"when": ["vm", "workspace"], "status": 1, "errors": [error("refused")]})
        with self.assertRaises(banger.RefusedError):
            Banger(str(PROGRAM)).create(workspace="/r")
        self.assertEqual(stand_in.arguments()[:2], ["vm", "delete"])

    def test_both_clients_have_the_same_methods(self) -> None:
        for name in ("Banger", "Sandbox", "Files", "Ports", "Egress", "Workspace"):
            one, other = getattr(_client, name), getattr(_async_client, f"Async{name}")

            def methods(of: type) -> dict[str, list[str]]:
                public = inspect.getmembers(of, inspect.isfunction)
                return {
                    name: list(inspect.signature(method).parameters)
                    for name, method in public
                    if not name.startswith("_")
                }

            self.assertEqual(methods(one), methods(other), name)
            self.assertTrue(methods(one))


class Errors(Case):
    def test_all_classes_are_in_the_package(self) -> None:
        expect = {kind.__name__ for kind in BY_CODE.values()}
        self.assertLess(expect, set(banger.__all__))
        self.assertTrue(all(issubclass(getattr(banger, name), banger.BangerError) for name in expect))

    def test_each_code_has_a_class(self) -> None:
        for code, kind in [
            ("dev.banger.Error.NoSuchVM", banger.NoSuchVMError),
            ("org.freedesktop.DBus.Error.AccessDenied", banger.AccessDeniedError),
            ("guest.not-found", banger.GuestNotFoundError),
            ("service-unavailable", banger.ServiceUnavailableError),
        ]:
            self.stand_in({"when": ["vm", "show"], "status": 1, "errors": [error(code)]})
            with self.assertRaises(kind) as raised:
                self.sandbox()
            found = raised.exception
            self.assertEqual((found.code, found.message, found.causes, found.remedy), (code, "no.", ("so.",), "`try` again."))
            self.assertEqual(str(found), "no.\n  because: so.\nhint: `try` again.")

    def test_a_new_code_is_an_error_without_a_class(self) -> None:
        self.stand_in({"when": ["vm", "show"], "status": 1, "errors": [error("com.example.Odd")]})
        with self.assertRaises(banger.BangerError) as raised:
            self.sandbox()
        self.assertIs(type(raised.exception), banger.BangerError)
        self.assertEqual(raised.exception.code, "com.example.Odd")

    def test_the_error_that_ends_the_command_counts(self) -> None:
        errors = [error("dev.banger.Error.Busy", "a"), error("io"), error("guest.other", "b")]
        self.stand_in({"when": ["vm", "show"], "status": 1, "errors": errors})
        with self.assertRaises(banger.IoError):
            self.sandbox()
        self.stand_in({"when": ["vm", "show"], "status": 1, "errors": errors[:1] + errors[2:]})
        with self.assertRaises(banger.BusyError):
            self.sandbox()

    def test_replies_that_are_none_are_errors(self) -> None:
        steps: list[dict[str, Any]] = [
            {"stdout": "no"},
            {"status": 1, "stderr": "it broke"},
            {"status": 1, "errors": ["no object"]},
            {"status": 1, "errors": [{"code": "io"}]},
        ]
        for step in steps:
            self.stand_in({"when": ["vm", "show"], **step})
            with self.assertRaises(banger.UnexpectedReplyError):
                self.sandbox()

    def test_a_missing_and_an_old_program_are_told_apart(self) -> None:
        for program in ("/nonexistent/banger", "/etc/passwd"):
            with self.assertRaises(banger.ProgramNotFoundError):
                Banger(program).version()
        steps: list[dict[str, Any]] = [
            {"stdout": '{"client": "0.0.9"}'},
            {"stdout": '{"client": 1}'},
            {"status": 2, "stderr": "unknown option"},
        ]
        for step in steps:
            self.stand_in({"when": ["version"], **step})
            with self.assertRaises(banger.ProgramTooOldError):
                self.sandbox()
        for version in ("0.1.0", "0.1.1", "0.10.0-rc.1", "1.0.0"):
            check_version("banger", {"client": version})

    def test_a_reply_with_a_check_that_fails_is_a_reply(self) -> None:
        self.stand_in({"when": ["doctor"], "status": 1, "stdout": '[{"check": "kvm"}]'})
        self.assertEqual(Banger(str(PROGRAM)).doctor()[0]["check"], "kvm")

    def test_forks_that_did_not_all_start_are_deleted(self) -> None:
        rows = json.dumps([{"reference": "a", "id": ID}, {"reference": "b", "id": "f" * 32}])
        stand_in = self.stand_in({"when": ["vm", "fork"], "stdout": rows, "status": 1, "errors": [error("guest.other", "b")]})
        with self.assertRaises(banger.GuestOtherError):
            self.sandbox().fork(count=2)
        self.assertEqual(stand_in.arguments(), ["vm", "delete", "-q", "--force", "--json", "--", ID, "f" * 32])

    def test_forks_without_an_object_are_deleted_and_the_first_error_counts(self) -> None:
        rows = json.dumps([{"reference": "a", "id": ID}, {"reference": "b", "id": "f" * 32}])
        plan: list[dict[str, Any]] = [
            {"when": ["vm", "fork"], "stdout": rows},
            {"when": ["vm", "show", "--json", "--", "f" * 32], "status": 1, "errors": [error("dev.banger.Error.Busy")]},
            {"when": ["vm", "delete"], "status": 1, "errors": [error("io")]},
        ]
        stand_in = self.stand_in(*plan)
        with self.assertRaises(banger.BusyError) as raised:
            self.sandbox().fork(count=2)
        self.assertIsInstance(raised.exception.__context__, banger.IoError)
        self.assertEqual(stand_in.arguments(), ["vm", "delete", "-q", "--force", "--json", "--", ID, "f" * 32])

    def test_errors_survive_being_pickled(self) -> None:
        result = banger.ExecResult(("x",), 3, b"out", b"err")
        kinds: list[type[banger.BangerError]] = [banger.BangerError, *BY_CODE.values()]
        for raised in [
            *(kind("code", "no.", ["so."], "`try`.") for kind in kinds),
            banger.ProgramNotFoundError("banger", OSError(2, "x")),
            banger.ProgramTooOldError("banger", None, "1.0.0"),
            banger.UnexpectedReplyError("no.", b"text"),
            banger.NotAFileError("/x"),
            banger.CommandFailedError(result),
            banger.TimeLimitError(result, 2.0),
            banger.OutputTooLargeError("it", 3, result),
        ]:
            copy = pickle.loads(pickle.dumps(raised))
            self.assertIs(type(copy), type(raised))
            self.assertEqual((str(copy), vars(copy)), (str(raised), vars(raised)))


class Commands(Case):
    def test_the_status_and_the_output_come_back(self) -> None:
        self.stand_in({"when": ["vm", "exec"], "hex": "68690aff", "stderr": "oh\n", "status": 3})
        result = self.sandbox().exec("make", "test")
        self.assertEqual((result.exit_status, result.stdout, result.stderr), (3, "hi\n\ufffd", "oh\n"))
        self.assertEqual((result.command, result.stdout_bytes), (("make", "test"), b"hi\n\xff"))
        with self.assertRaises(banger.CommandFailedError) as raised:
            self.sandbox().exec("make", check=True)
        self.assertEqual(raised.exception.result.exit_status, 3)
        self.assertEqual(str(raised.exception), "make ended with exit status 3.\n  because: oh")

    def test_a_failure_of_banger_is_told_from_one_of_the_command(self) -> None:
        line = json.dumps(error("dev.banger.Error.NoSuchVM"))
        self.stand_in({"when": ["vm", "exec"], "status": 125, "stderr": line})
        self.assertEqual(self.sandbox().exec("x").exit_status, 125)
        self.stand_in({"when": ["vm", "exec"], "status": 125, "errors": [error("io", "a connection")]})
        self.assertEqual(self.sandbox().exec("x").exit_status, 125)
        self.stand_in({"when": ["vm", "exec"], "status": 127, "errors": [error("guest.not-found")]})
        with self.assertRaises(banger.GuestNotFoundError):
            self.sandbox().exec("x")
        with self.assertRaises(banger.GuestNotFoundError), self.sandbox().stream("x") as output:
            list(output)

    def test_input_of_every_kind_arrives(self) -> None:
        self.stand_in({"when": ["vm", "exec"], "cat": True})
        much = b"0123456789abcdef" * (1 << 16)
        inputs: list[tuple[Input, bytes]] = [
            (b"bytes", b"bytes"),
            ("text \u20ac", "text \u20ac".encode()),
            (iter([b"a", b"", b"b"]), b"ab"),
            (b"", b""),
            (much, much),
        ]
        for given, expect in inputs:
            self.assertEqual(self.sandbox().exec("cat", input=given).stdout_bytes, expect)

    def test_a_command_that_reads_no_input_is_no_error(self) -> None:
        self.stand_in({"when": ["vm", "exec"], "status": 4})
        self.assertEqual(self.sandbox().exec("true", input=b"x" * (1 << 20)).exit_status, 4)

    def test_an_error_of_the_input_ends_the_command(self) -> None:
        def pieces() -> Iterator[bytes]:
            yield b"one"
            raise KeyError

        stand_in = self.stand_in({"when": ["vm", "exec"], "cat": True})
        with self.assertRaises(KeyError):
            self.sandbox().exec("cat", input=pieces())
        self.assertFalse(stand_in.is_running())
        self.assertFalse(stand_in.has_read_all(), "a part of the input was taken for all of it")

    def test_too_much_output_ends_the_command(self) -> None:
        stand_in = self.stand_in({"when": ["vm", "exec"], "much": 1 << 30})
        with self.assertRaises(banger.OutputTooLargeError) as raised:
            self.sandbox().exec("yes", max_output=1000)
        assert raised.exception.result is not None
        self.assertEqual(raised.exception.result.stdout, "x" * 1000)
        self.assertFalse(stand_in.is_running())

    def test_a_time_limit_ends_the_command(self) -> None:
        stand_in = self.stand_in({"when": ["vm", "exec"], "before": "begun", "signals": 1})
        with self.assertRaises(banger.TimeLimitError):
            self.sandbox().exec("sleep", "1000", time_limit=0.5)
        self.assertFalse(stand_in.is_running())

    def test_a_command_that_ignores_a_signal_gets_another(self) -> None:
        stand_in = self.stand_in({"when": ["vm", "exec"], "signals": 2})
        sandbox = self.sandbox()
        self.interrupt_once_started(stand_in)
        with unittest.mock.patch("banger._calls.EXEC_GRACE", 1.0), self.assertRaises(KeyboardInterrupt):
            sandbox.exec("sleep", "1000")
        self.assertEqual(stand_in.signals(), ["SIGTERM", "SIGTERM"])
        self.assertFalse(stand_in.is_running())

    def test_an_interrupt_ends_the_command(self) -> None:
        stand_in = self.stand_in({"when": ["vm", "exec"], "signals": 1})
        sandbox = self.sandbox()
        self.interrupt_once_started(stand_in)
        with self.assertRaises(KeyboardInterrupt):
            sandbox.exec("sleep", "1000")
        self.assertEqual(stand_in.signals(), ["SIGTERM"])
        self.assertFalse(stand_in.is_running())

    def test_an_interrupt_of_the_terminal_is_one_signal(self) -> None:
        stand_in = self.stand_in({"when": ["vm", "exec"], "signals": 1})
        program = f"from banger import Banger\nBanger({str(PROGRAM)!r}).get('web').exec('sleep', '1000')"
        # In a group of its own, as what a shell starts in a terminal.
        child = subprocess.Popen([sys.executable, "-c", program], start_new_session=True, stderr=subprocess.PIPE)
        stand_in.wait_for_start()
        os.killpg(child.pid, signal.SIGINT)
        _, errors = child.communicate()
        self.assertIn(b"KeyboardInterrupt", errors)
        self.assertEqual(stand_in.signals(), ["SIGTERM"])
        self.assertFalse(stand_in.is_running())

    def test_a_creation_that_was_interrupted_after_its_job_is_taken_back(self) -> None:
        step = {"when": ["vm", "create"], "signals": 1, "stdout": json.dumps(SANDBOX), "status": 143}
        stand_in = self.stand_in({**step, "errors": [error("cancelled")]})
        self.interrupt_once_started(stand_in)
        with self.assertRaises(KeyboardInterrupt):
            Banger(str(PROGRAM)).create()
        self.assertEqual(stand_in.arguments(), ["vm", "delete", "-q", "--force", "--json", "--", ID])

    def test_a_creation_that_was_interrupted_too_late_is_taken_back(self) -> None:
        stand_in = self.stand_in({"when": ["vm", "create"], "signals": 1, "stdout": json.dumps(SANDBOX)})
        self.interrupt_once_started(stand_in)
        with self.assertRaises(KeyboardInterrupt):
            Banger(str(PROGRAM)).create()
        self.assertEqual(stand_in.arguments(), ["vm", "delete", "-q", "--force", "--json", "--", ID])

    def test_output_comes_while_the_command_runs(self) -> None:
        stand_in = self.stand_in({"when": ["vm", "exec"], "before": "begun", "signals": 1, "stderr": "end", "status": 5})
        with self.sandbox().stream("make") as output:
            first = next(iter(output))
            self.assertEqual((first.stream, first.text, output.exit_status), ("stdout", "begun", None))
            os.kill(stand_in.calls()[-1]["pid"], signal.SIGINT)
            self.assertEqual([(chunk.stream, chunk.text) for chunk in output], [("stderr", "end")])
            self.assertEqual(output.exit_status, 5)
        with self.assertRaises(RuntimeError):
            next(iter(output))

    def test_leaving_the_block_of_a_stream_ends_the_command(self) -> None:
        stand_in = self.stand_in({"when": ["vm", "exec"], "before": "begun", "signals": 1})
        with self.sandbox().stream("make") as output:
            for _chunk in output:
                break
        self.assertEqual(stand_in.signals(), ["SIGTERM"])
        self.assertFalse(stand_in.is_running())

    def test_a_stream_has_no_limit_of_size_and_one_of_time(self) -> None:
        self.stand_in({"when": ["vm", "exec"], "much": 40 << 20})
        with self.sandbox().stream("yes") as output:
            self.assertEqual(sum(len(chunk.data) for chunk in output), 40 << 20)
        self.stand_in({"when": ["vm", "exec"], "signals": 1})
        with self.assertRaises(banger.TimeLimitError), self.sandbox().stream("sleep", time_limit=0.2) as output:
            list(output)

    def test_a_detached_command_has_a_number(self) -> None:
        stand_in = self.stand_in({"when": ["vm", "exec"], "stdout": '{"id": 7}'})
        self.assertEqual(self.sandbox().exec_detached("serve", env={"PORT": "80"}), 7)
        call = stand_in.calls()[-1]
        self.assertEqual(call["variables"], "PORT=80\0")
        self.assertEqual([word for word in call["arguments"] if "env-file" not in word],
                         ["vm", "exec", "--detach", "--json", "--", ID, "serve"])

    def test_events_are_objects_and_those_of_one_sandbox_are_chosen(self) -> None:
        lines = "".join(json.dumps({"event": str(number), "object": of}) + "\n" for number, of in enumerate([ID, "x", ID]))
        self.stand_in({"when": ["events"], "stdout": lines})
        with Banger(str(PROGRAM)).events() as events:
            self.assertEqual([event["event"] for event in events], ["0", "1", "2"])
        with self.sandbox().events() as events:
            self.assertEqual([event["event"] for event in events], ["0", "2"])
        self.stand_in({"when": ["events"], "status": 1, "errors": [error("service-ended")]})
        with self.assertRaises(banger.ServiceEndedError), self.sandbox().events() as events:
            list(events)
        stand_in = self.stand_in({"when": ["events"], "before": '{"event": "a", "object": "x"}\n', "signals": 1})
        with Banger(str(PROGRAM)).events() as events:
            self.assertEqual(next(iter(events))["event"], "a")
        self.assertFalse(stand_in.is_running())


def archive(data: bytes, name: str = "x", kind: bytes = tarfile.REGTYPE) -> str:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size, entry.type = len(data), kind
        tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue().hex()


class FilesTest(Case):
    def test_a_file_is_read_from_an_archive(self) -> None:
        stand_in = self.stand_in({"when": ["vm", "cp"], "hex": archive(b"hello \xff", "n" * 200)})
        self.assertEqual(self.sandbox().files.read("notes/x"), b"hello \xff")
        self.assertEqual(stand_in.arguments(), f"vm cp -q --follow-link -- {ID}:notes/x -".split())
        with self.assertRaises(banger.OutputTooLargeError):
            self.sandbox().files.read("x", max_bytes=6)
        self.stand_in({"when": ["vm", "cp"], "hex": archive(b"", kind=tarfile.DIRTYPE)})
        with self.assertRaises(banger.NotAFileError):
            self.sandbox().files.read("x")
        self.stand_in({"when": ["vm", "cp"], "stdout": "nothing"})
        with self.assertRaises(banger.UnexpectedReplyError):
            self.sandbox().files.read("x")
        self.stand_in({"when": ["vm", "cp"], "much": 1 << 30})
        with self.assertRaises(banger.OutputTooLargeError):
            self.sandbox().files.read("x", max_bytes=1000)

    def test_a_file_is_written_as_an_archive(self) -> None:
        for path, to in [("/srv/a/x", "/srv/a/"), ("x", ""), ("/x", "/"), ("~ann/" + "n" * 200, "~ann/")]:
            stand_in = self.stand_in({"when": ["vm", "cp"], "cat": True})
            sandbox = self.sandbox()
            packed: list[bytes] = []
            with unittest.mock.patch("banger._calls._nothing", packed.append):
                sandbox.files.write(path, "text \u20ac", mode=0o755, chown="dev")
            self.assertEqual(stand_in.arguments(), ["vm", "cp", "-q", "--chown=dev", "--", "-", f"{ID}:{to}"])
            with tarfile.open(fileobj=io.BytesIO(packed[0])) as tar:
                entry = tar.next()
                assert entry is not None
                content = tar.extractfile(entry)
                assert content is not None
                self.assertEqual((entry.name, entry.mode, content.read()),
                                 (path.rpartition("/")[2], 0o755, "text \u20ac".encode()))
        for path in ("", "/", "a/", "a/..", "."):
            with self.assertRaises(ValueError):
                self.sandbox().files.write(path, b"")


class Async(Case, unittest.IsolatedAsyncioTestCase):
    async def test_many_commands_run_at_once(self) -> None:
        self.stand_in({"when": ["vm", "exec"], "cat": True})
        sandbox = await self.async_sandbox()
        results = await asyncio.gather(*(sandbox.exec("cat", input=str(number)) for number in range(20)))
        self.assertEqual([result.stdout for result in results], [str(number) for number in range(20)])

    async def test_input_of_every_kind_arrives(self) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"a"
            await asyncio.sleep(0)
            yield b"b"

        self.stand_in({"when": ["vm", "exec"], "cat": True})
        sandbox = await self.async_sandbox()
        much = b"0123456789abcdef" * (1 << 16)
        inputs: list[tuple[AsyncInput, bytes]] = [
            (pieces(), b"ab"),
            (much, much),
            (iter([b"x", b"y"]), b"xy"),
            ("\u20ac", b"\xe2\x82\xac"),
        ]
        for given, expect in inputs:
            self.assertEqual((await sandbox.exec("cat", input=given)).stdout_bytes, expect)

    async def test_a_command_that_reads_no_input_is_no_error(self) -> None:
        self.stand_in({"when": ["vm", "exec"], "status": 4})
        sandbox = await self.async_sandbox()
        self.assertEqual((await sandbox.exec("true", input=b"x" * (1 << 20))).exit_status, 4)

    async def test_an_error_of_the_input_is_raised(self) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"one"
            raise KeyError

        stand_in = self.stand_in({"when": ["vm", "exec"], "cat": True})
        with self.assertRaises(KeyError):
            await (await self.async_sandbox()).exec("cat", input=pieces())
        self.assertFalse(stand_in.is_running())
        self.assertFalse(stand_in.has_read_all(), "a part of the input was taken for all of it")
        # Of a command that does not read it, either.
        stand_in = self.stand_in({"when": ["vm", "exec"], "signals": 1})
        with self.assertRaises(KeyError):
            await (await self.async_sandbox()).exec("sleep", input=pieces())
        self.assertFalse(stand_in.is_running())

    async def test_a_cancellation_ends_the_command_before_it_arrives(self) -> None:
        stand_in = self.stand_in({"when": ["vm", "exec"], "signals": 1})
        sandbox = await self.async_sandbox()
        task = asyncio.ensure_future(sandbox.exec("sleep", "1000"))
        await asyncio.to_thread(stand_in.wait_for_start)
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        self.assertEqual(stand_in.signals(), ["SIGTERM"])
        self.assertFalse(stand_in.is_running())

    async def test_a_second_cancellation_does_not_leave_the_command_running(self) -> None:
        stand_in = self.stand_in({"when": ["vm", "exec"], "signals": 2})
        sandbox = await self.async_sandbox()
        with unittest.mock.patch("banger._calls.EXEC_GRACE", 1.0):
            task = asyncio.ensure_future(sandbox.exec("sleep", "1000"))
            await asyncio.to_thread(stand_in.wait_for_start)
            task.cancel()
            await asyncio.sleep(0.1)
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
        self.assertFalse(stand_in.is_running())

    async def test_a_creation_that_was_cancelled_too_late_is_taken_back(self) -> None:
        stand_in = self.stand_in({"when": ["vm", "create"], "signals": 1, "stdout": json.dumps(SANDBOX)})
        task = asyncio.ensure_future(AsyncBanger(str(PROGRAM)).create())
        await asyncio.to_thread(stand_in.wait_for_start)
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        self.assertEqual(stand_in.arguments()[:2], ["vm", "delete"])

    async def test_a_cancellation_when_the_task_ends_does_not_lose_the_result(self) -> None:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiting = asyncio.ensure_future(_async_process._undisturbed(future))
        await asyncio.sleep(0)
        future.set_result(7)
        waiting.cancel()
        self.assertEqual(await waiting, (7, True))

    async def test_a_cancellation_when_the_deadline_is_far_is_not_lost(self) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        waiting = asyncio.ensure_future(_async_process._before(loop.time() + 1000, future))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        future.set_result(7)
        waiting.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await waiting

    async def test_a_cancelled_creation_stays_cancelled_when_its_undo_fails(self) -> None:
        plan: list[dict[str, Any]] = [
            {"when": ["vm", "workspace"], "signals": 1},
            {"when": ["vm", "delete"], "status": 1, "errors": [error("io")]},
        ]
        stand_in = self.stand_in(*plan)
        task = asyncio.ensure_future(AsyncBanger(str(PROGRAM)).create(workspace="/r"))
        await asyncio.to_thread(stand_in.wait_for_start)
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        self.assertEqual(stand_in.arguments()[:2], ["vm", "delete"])

    async def test_forks_without_an_object_are_deleted(self) -> None:
        rows = json.dumps([{"reference": "a", "id": ID}, {"reference": "b", "id": "f" * 32}])
        plan: list[dict[str, Any]] = [
            {"when": ["vm", "fork"], "stdout": rows},
            {"when": ["vm", "show", "--json", "--", "f" * 32], "signals": 1},
        ]
        stand_in = self.stand_in(*plan)
        sandbox = await self.async_sandbox()
        task = asyncio.ensure_future(sandbox.fork(count=2))
        await asyncio.to_thread(stand_in.wait_for_start)
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        self.assertEqual(stand_in.arguments(), ["vm", "delete", "-q", "--force", "--json", "--", ID, "f" * 32])

    async def test_nothing_is_left_open_by_streams_that_are_not_read(self) -> None:
        self.stand_in({"when": ["vm", "exec"], "pieces": 2 * _async_process.QUEUE})
        sandbox = await self.async_sandbox()

        async def leave() -> None:
            async with sandbox.stream("yes") as output:
                assert output._process is not None
                await output._process.wait()

        await leave()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            await leave()
        await asyncio.sleep(0)
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), before)
        self.assertEqual(asyncio.all_tasks(), {asyncio.current_task()})

    async def test_limits_of_time_and_of_size_end_the_command(self) -> None:
        stand_in = self.stand_in({"when": ["vm", "exec"], "before": "begun", "signals": 1})
        sandbox = await self.async_sandbox()
        with self.assertRaises(banger.TimeLimitError):
            await sandbox.exec("sleep", time_limit=0.5)
        self.assertFalse(stand_in.is_running())
        stand_in = self.stand_in({"when": ["vm", "exec"], "much": 1 << 30})
        with self.assertRaises(banger.OutputTooLargeError):
            await sandbox.exec("yes", max_output=1000)
        self.assertFalse(stand_in.is_running())

    async def test_a_stream_and_its_end(self) -> None:
        stand_in = self.stand_in({"when": ["vm", "exec"], "before": "begun", "signals": 1, "stderr": "end", "status": 5})
        sandbox = await self.async_sandbox()
        async with sandbox.stream("make") as output:
            seen = []
            async for chunk in output:
                seen.append((chunk.stream, chunk.text))
                if len(seen) == 1:
                    os.kill(stand_in.calls()[-1]["pid"], signal.SIGINT)
            self.assertEqual((seen, output.exit_status), ([("stdout", "begun"), ("stderr", "end")], 5))
        stand_in = self.stand_in({"when": ["vm", "exec"], "before": "begun", "signals": 1})
        async with sandbox.stream("make") as output:
            async for _chunk in output:
                break
        self.assertFalse(stand_in.is_running())
        stand_in = self.stand_in({"when": ["events"], "before": '{"event": "a", "object": "x"}\n', "signals": 1})
        async with AsyncBanger(str(PROGRAM)).events() as events:
            async for event in events:
                self.assertEqual(event["event"], "a")
                break
        self.assertFalse(stand_in.is_running())

    async def test_errors_are_those_of_the_other_client(self) -> None:
        self.stand_in({"when": ["vm", "show"], "status": 1, "errors": [error("dev.banger.Error.NoSuchVM")]})
        with self.assertRaises(banger.NoSuchVMError):
            await self.async_sandbox()
        with self.assertRaises(banger.ProgramNotFoundError):
            await AsyncBanger("/nonexistent/banger").version()
        self.stand_in({"when": ["version"], "stdout": '{"client": "0.0.1"}'})
        with self.assertRaises(banger.ProgramTooOldError):
            await self.async_sandbox()

    async def test_the_block_of_a_sandbox_deletes_it(self) -> None:
        stand_in = self.stand_in()
        async with await AsyncSandbox.create(client=AsyncBanger(str(PROGRAM))):
            pass
        self.assertEqual(stand_in.arguments()[:2], ["vm", "delete"])


if __name__ == "__main__":
    unittest.main()

"""The synchronous client."""

from __future__ import annotations

import builtins
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType

from . import _calls as calls
from . import _types as types
from ._calls import Exec, HostPath, Size
from ._codes import NoSuchVMError
from ._errors import TimeLimitError, UnexpectedReplyError
from ._process import DeadlinePassed, Input, Process, Runner, failure_of, reply_of, result_of
from ._results import Chunk, ExecResult

__all__ = ["Banger", "CommandStream", "EventStream", "Sandbox"]

#: The longest line of an event, in bytes.
MAX_EVENT = 1 << 20


class Banger:
    """The command ``banger`` on this host, with the rights of its user."""

    def __init__(self, program: str = "banger") -> None:
        """``program`` is the name or the path of the command."""
        self._runner = Runner(program)

    def version(self) -> types.Version:
        """Returns the versions of the command and of the service."""
        return self._runner.run(calls.version())

    def doctor(self) -> builtins.list[types.Check]:
        """Checks whether this host is ready."""
        return self._runner.run(calls.doctor())

    def list(self, *, filters: Sequence[str] = (), labels: Mapping[str, str] | None = None) -> builtins.list[Sandbox]:
        """Returns the sandboxes that match, running or not. Filters are those of ``banger list``: ``state=running``."""
        rows = self._runner.run(calls.listing(filters, labels))
        return [Sandbox(self, row) for row in rows]

    def get(self, reference: str) -> Sandbox:
        """Returns the sandbox with this name, id or id prefix."""
        return Sandbox(self, self._runner.run(calls.show(reference)))

    def create(
        self,
        *,
        name: str | None = None,
        image: str | None = None,
        pull: calls.Pull | None = None,
        kernel: str | None = None,
        vcpus: int | None = None,
        memory: Size | None = None,
        root_size: Size | None = None,
        disk_size: Size | None = None,
        nat: bool | None = None,
        egress: Sequence[str] | None = None,
        restart: calls.Restart | None = None,
        autostart: bool | None = None,
        publish: Sequence[str | int] | None = None,
        labels: Mapping[str, str] | None = None,
        vmm: calls.Vmm | None = None,
        timezone: str | None = None,
        idle: str | None = None,
        ready_timeout: int | None = None,
        profile: str | None = None,
        wait: calls.Wait | None = None,
        start: bool = True,
        workspace: HostPath | None = None,
    ) -> Sandbox:
        """Creates a sandbox and starts it. What is None is as in your settings, else as the service has it.

        ``memory``, ``root_size`` and ``disk_size`` are bytes, or texts such as ``"2GiB"``. ``egress`` is what the sandbox may
        reach beyond the host; an empty list is nothing. ``workspace`` is a directory of a repository that is sent into the
        sandbox; commands then run in it.

        A sandbox whose guest does not become ready is kept, so that its console can be read: see the ``remedy`` of the error.
        """
        call = calls.create(
            name=name,
            image=image,
            pull=pull,
            kernel=kernel,
            vcpus=vcpus,
            memory=memory,
            root_size=root_size,
            disk_size=disk_size,
            nat=nat,
            egress=egress,
            restart=restart,
            autostart=autostart,
            publish=publish,
            labels=labels,
            vmm=vmm,
            timezone=timezone,
            idle=idle,
            ready_timeout=ready_timeout,
            profile=profile,
            wait=wait,
            start=start,
        )
        sandbox = Sandbox(self, self._runner.run(call, lambda made: calls.delete(made["id"])))
        if workspace is not None:
            try:
                sandbox.workspace.prepare(workspace)
            except BaseException as first:
                self._runner.undo(calls.delete(sandbox.id), first)
                raise
        return sandbox

    def images(self) -> builtins.list[types.ListedImage]:
        """Returns your images and the shared ones."""
        return self._runner.run(calls.images())

    def pull_image(self, reference: str, *, name: str | None = None) -> types.Image:
        """Pulls an image from a catalog or a registry."""
        return self._runner.run(calls.pull(reference, name))

    def events(self, *, all_users: bool = False) -> EventStream:
        """Follows the events of your sandboxes, images and jobs: ``with banger.events() as events: for event in events``."""
        return EventStream(self._runner, calls.events(all_users), None)


#: The client of sandboxes without one of their own.
DEFAULT = Banger()


class Sandbox:
    """A sandbox. As a context manager, it is deleted at the end."""

    def __init__(self, client: Banger, properties: types.SandboxProperties) -> None:
        self._client = client
        self._runner = client._runner
        #: What banger printed last about it; ``show`` reads it again.
        self.properties = properties
        self.files = Files(self)
        self.ports = Ports(self)
        self.egress = Egress(self)
        self.workspace = Workspace(self)

    @staticmethod
    def create(
        *,
        client: Banger | None = None,
        name: str | None = None,
        image: str | None = None,
        pull: calls.Pull | None = None,
        kernel: str | None = None,
        vcpus: int | None = None,
        memory: Size | None = None,
        root_size: Size | None = None,
        disk_size: Size | None = None,
        nat: bool | None = None,
        egress: Sequence[str] | None = None,
        restart: calls.Restart | None = None,
        autostart: bool | None = None,
        publish: Sequence[str | int] | None = None,
        labels: Mapping[str, str] | None = None,
        vmm: calls.Vmm | None = None,
        timezone: str | None = None,
        idle: str | None = None,
        ready_timeout: int | None = None,
        profile: str | None = None,
        wait: calls.Wait | None = None,
        start: bool = True,
        workspace: HostPath | None = None,
    ) -> Sandbox:
        """Creates a sandbox and starts it: see ``Banger.create``."""
        return (client or DEFAULT).create(
            name=name,
            image=image,
            pull=pull,
            kernel=kernel,
            vcpus=vcpus,
            memory=memory,
            root_size=root_size,
            disk_size=disk_size,
            nat=nat,
            egress=egress,
            restart=restart,
            autostart=autostart,
            publish=publish,
            labels=labels,
            vmm=vmm,
            timezone=timezone,
            idle=idle,
            ready_timeout=ready_timeout,
            profile=profile,
            wait=wait,
            start=start,
            workspace=workspace,
        )

    @staticmethod
    def get(reference: str, *, client: Banger | None = None) -> Sandbox:
        """Returns the sandbox with this name, id or id prefix."""
        return (client or DEFAULT).get(reference)

    @staticmethod
    def list(
        *, client: Banger | None = None, filters: Sequence[str] = (), labels: Mapping[str, str] | None = None
    ) -> builtins.list[Sandbox]:
        """Returns the sandboxes that match, running or not."""
        return (client or DEFAULT).list(filters=filters, labels=labels)

    @property
    def id(self) -> str:
        """Its id, which never changes."""
        return self.properties["id"]

    @property
    def name(self) -> str:
        """Its name."""
        return self.properties["name"]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.id[:12]}>"

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.delete()

    def show(self) -> types.SandboxProperties:
        """Reads its properties again."""
        self.properties = self._runner.run(calls.show(self.id))
        return self.properties

    def start(self, *, wait: calls.Wait | None = None) -> types.Outcome:
        """Boots it, and waits until its guest is ready."""
        return self._runner.run(calls.change("start", self.id, wait=wait))

    def stop(self, *, timeout: int | None = None, force: bool = False) -> types.Outcome:
        """Shuts it down. Its guest has ``timeout`` seconds for that, and none with ``force``."""
        return self._runner.run(calls.change("stop", self.id, timeout=timeout, force=force))

    def restart(self, *, timeout: int | None = None, force: bool = False) -> types.Outcome:
        """Shuts it down and boots it again."""
        return self._runner.run(calls.change("restart", self.id, timeout=timeout, force=force))

    def pause(self) -> types.Outcome:
        """Pauses it: it keeps its memory, and gets no processor time."""
        return self._runner.run(calls.change("pause", self.id))

    def unpause(self) -> types.Outcome:
        """Continues it after ``pause``."""
        return self._runner.run(calls.change("unpause", self.id))

    def suspend(self) -> types.Outcome:
        """Writes its memory to disk, and ends its VMM. It takes neither memory nor processor time then."""
        return self._runner.run(calls.change("suspend", self.id))

    def resume(self) -> types.Outcome:
        """Continues it after ``suspend``."""
        return self._runner.run(calls.change("resume", self.id))

    def rename(self, name: str) -> None:
        """Renames it."""
        self.properties = self._runner.run(calls.rename(self.id, name))

    def delete(self) -> None:
        """Deletes it with its disks and snapshots, even if it runs. One that is gone is deleted already."""
        try:
            self._runner.run(calls.delete(self.id))
        except NoSuchVMError:
            pass

    def fork(
        self,
        *,
        count: int | None = None,
        names: Sequence[str] | None = None,
        from_snapshot: str | None = None,
        start: bool = True,
    ) -> builtins.list[Sandbox]:
        """Makes new sandboxes from this one, or from a snapshot of it. If one of them does not start, none is kept."""
        call = calls.fork(self.id, count, names, from_snapshot, start)
        ids = self._runner.run(call, lambda ids: calls.delete(*ids) if ids else None)
        try:
            return [self._client.get(id) for id in ids]
        except BaseException as first:
            # The caller has no other hold of them.
            if ids:
                self._runner.undo(calls.delete(*ids), first)
            raise

    def snapshot(self, name: str) -> types.Snapshot:
        """Creates a snapshot of it."""
        return self._runner.run(calls.snapshot(self.id, name))

    def snapshots(self) -> builtins.list[types.Snapshot]:
        """Returns its snapshots."""
        return self._runner.run(calls.snapshots(self.id))

    def delete_snapshot(self, name: str) -> None:
        """Deletes a snapshot of it."""
        self._runner.run(calls.delete_snapshot(self.id, name))

    def stats(self) -> types.Stats:
        """Returns its resource usage."""
        return self._runner.run(calls.stats(self.id))

    def logs(self, *, tail: int | None = None, exec: int | None = None) -> str:
        """Returns its console, or the output of the detached command with the number ``exec``; of that the last ``tail``
        lines."""
        return self._runner.run(calls.logs(self.id, tail, exec))

    def events(self) -> EventStream:
        """Follows its events: ``with sandbox.events() as events: for event in events``."""
        return EventStream(self._runner, calls.events(False), self.id)

    def exec(
        self,
        *command: str,
        input: Input = None,
        check: bool = False,
        time_limit: float | None = None,
        max_output: int = calls.MAX_OUTPUT,
        user: str | None = None,
        workdir: str | None = None,
        env: Mapping[str, str] | None = None,
        share: Sequence[str] | None = None,
        proxy: bool | None = None,
        wait: calls.Wait | None = None,
        guest_path: str | None = None,
        auto_prepare: bool | None = None,
    ) -> ExecResult:
        """Runs a command, without a shell, and returns its exit status and output.

        With ``check``, another status than 0 raises ``CommandFailedError``. After ``time_limit`` seconds the command is ended,
        and ``TimeLimitError`` raised. A stream with more than ``max_output`` bytes ends it with ``OutputTooLargeError``;
        ``stream`` has no such limit.
        """
        wanted = calls.exec_(
            self.id,
            command,
            has_input=input is not None,
            user=user,
            workdir=workdir,
            env=env,
            share=share,
            proxy=proxy,
            wait=wait,
            guest_path=guest_path,
            auto_prepare=auto_prepare,
        )
        result = self._runner.exec(wanted, input, time_limit, max_output)
        return calls.checked(result) if check else result

    def stream(
        self,
        *command: str,
        input: Input = None,
        time_limit: float | None = None,
        user: str | None = None,
        workdir: str | None = None,
        env: Mapping[str, str] | None = None,
        share: Sequence[str] | None = None,
        proxy: bool | None = None,
        wait: calls.Wait | None = None,
        guest_path: str | None = None,
        auto_prepare: bool | None = None,
    ) -> CommandStream:
        """Runs a command, and gives its output as it comes:
        ``with sandbox.stream("make") as output: for chunk in output``. Leaving the block ends the command."""
        wanted = calls.exec_(
            self.id,
            command,
            has_input=input is not None,
            user=user,
            workdir=workdir,
            env=env,
            share=share,
            proxy=proxy,
            wait=wait,
            guest_path=guest_path,
            auto_prepare=auto_prepare,
        )
        return CommandStream(self._runner, wanted, input, time_limit)

    def exec_detached(
        self,
        *command: str,
        user: str | None = None,
        workdir: str | None = None,
        env: Mapping[str, str] | None = None,
        proxy: bool | None = None,
        wait: calls.Wait | None = None,
        guest_path: str | None = None,
        auto_prepare: bool | None = None,
    ) -> int:
        """Starts a command in the background, and returns its number. It runs until its sandbox stops."""
        wanted = calls.exec_(
            self.id,
            command,
            has_input=False,
            detach=True,
            user=user,
            workdir=workdir,
            env=env,
            proxy=proxy,
            wait=wait,
            guest_path=guest_path,
            auto_prepare=auto_prepare,
        )
        return self._runner.run(calls.detached(wanted))

    def commands(self) -> builtins.list[types.Command]:
        """Returns the detached commands, and how they ended."""
        return self._runner.run(calls.commands(self.id))


class Files:
    """The files of a sandbox. Paths are absolute, or below the home directory of the user that commands run as."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._runner = sandbox._runner

    def read(self, path: str, *, max_bytes: int = calls.MAX_FILE) -> bytes:
        """Returns the content of a file. A larger one raises ``OutputTooLargeError``."""
        return self._runner.run(calls.read(self._sandbox.id, path, max_bytes))

    def read_text(self, path: str, *, encoding: str = "utf-8", max_bytes: int = calls.MAX_FILE) -> str:
        """Returns the content of a file as text."""
        return self.read(path, max_bytes=max_bytes).decode(encoding)

    def write(self, path: str, data: bytes | str, *, mode: int = 0o644, chown: str | None = None) -> None:
        """Writes a file. Replaces an existing one, and creates missing directories."""
        self._runner.run(calls.write(self._sandbox.id, path, data, mode, chown))

    def list(self, path: str, *, recursive: bool = False) -> builtins.list[types.File]:
        """Returns what is in a directory, or everything below it. The path is absolute."""
        return self._runner.run(calls.files(self._sandbox.id, path, recursive))

    def upload(self, host_path: HostPath, path: str, *, chown: str | None = None) -> None:
        """Copies a file or a directory of the host into the sandbox, as ``banger cp`` does."""
        self._runner.run(calls.upload(self._sandbox.id, host_path, path, chown))

    def download(self, path: str, host_path: HostPath) -> None:
        """Copies a file or a directory out of the sandbox, as ``banger cp`` does."""
        self._runner.run(calls.download(self._sandbox.id, path, host_path))


class Ports:
    """The ports of a sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._runner = sandbox._runner

    def list(self) -> builtins.list[types.ListeningPort]:
        """Returns the ports on which the sandbox listens."""
        return self._runner.run(calls.listening(self._sandbox.id))

    def published(self) -> builtins.list[types.PublishedPort]:
        """Returns the ports that are published on the host."""
        return self._runner.run(calls.publish(self._sandbox.id, ()))

    def publish(self, *ports: str | int) -> builtins.list[types.PublishedPort]:
        """Publishes ports on the host: ``80`` on a free port, or ``"8080:80"``. Returns them."""
        if not ports:
            raise ValueError("no port to publish")
        return self._runner.run(calls.publish(self._sandbox.id, ports))

    def unpublish(self, *ports: str | int) -> None:
        """Stops publishing these ports of the host."""
        self._runner.run(calls.unpublish(self._sandbox.id, ports))


class Egress:
    """What a sandbox may reach beyond the host."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._runner = sandbox._runner

    def show(self) -> types.Egress:
        """Returns what it may reach, and what it was denied."""
        return self._runner.run(calls.egress(self._sandbox.id))

    def allow(self, *entries: str) -> None:
        """Lets it reach more: hosts such as ``"github.com"`` or ``"*.example.com:443"``, or presets."""
        self._runner.run(calls.change_egress("allow", self._sandbox.id, entries))

    def deny(self, *entries: str) -> None:
        """Takes back what it may reach. Its connections there end."""
        self._runner.run(calls.change_egress("deny", self._sandbox.id, entries))


class Workspace:
    """The repository in a sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._runner = sandbox._runner

    def prepare(
        self,
        path: HostPath,
        *,
        guest_path: str | None = None,
        mode: calls.Mode | None = None,
        branch: str | None = None,
        include_untracked: bool = False,
        include: Sequence[str] | None = None,
    ) -> types.PreparedWorkspace:
        """Sends the repository in this directory of the host, with its uncommitted changes."""
        call = calls.prepare(
            self._sandbox.id,
            path,
            guest_path=guest_path,
            mode=mode,
            branch=branch,
            include_untracked=include_untracked,
            include=include,
        )
        return self._runner.run(call)

    def export(
        self, *, apply: bool = False, merge: bool = False, branch: str | None = None, guest_path: str | None = None
    ) -> types.Export:
        """Returns what has changed there. With ``apply`` it comes back into the work tree, with ``branch`` as a commit on a
        new branch."""
        call = calls.export(self._sandbox.id, apply=apply, merge=merge, branch=branch, guest_path=guest_path)
        return self._runner.run(call)

    def fetch(self, *, branch: str | None = None, guest_path: str | None = None) -> types.Fetched:
        """Fetches the commits made there to ``refs/banger/NAME/``."""
        return self._runner.run(calls.fetch(self._sandbox.id, branch=branch, guest_path=guest_path))


class CommandStream:
    """The output of a command, as it comes. It runs while its ``with`` block does, at most."""

    #: The exit status, once the output has ended.
    exit_status: int | None

    def __init__(self, runner: Runner, command: Exec, input: Input, time_limit: float | None) -> None:
        self._runner = runner
        self._command = command
        self._input = input
        self._time_limit = time_limit
        self._deadline: float | None = None
        self._process: Process | None = None
        self.exit_status = None

    def __enter__(self) -> CommandStream:
        self._runner.check()
        self._process = Process(self._runner.program, self._command.arguments, self._input, self._command)
        self._deadline = None if self._time_limit is None else time.monotonic() + self._time_limit
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, self._process = self._process, None
        if process is not None:
            try:
                process.end(calls.EXEC_GRACE)
            finally:
                process.close()

    def __iter__(self) -> Iterator[Chunk]:
        process = self._process
        if process is None:
            raise RuntimeError("a stream is read in its `with` block")
        try:
            yield from process.chunks(self._deadline)
            status = process.wait(self._deadline)
        except DeadlinePassed:
            status, _ = process.end(calls.EXEC_GRACE)
            assert self._time_limit is not None
            raise TimeLimitError(result_of(self._command, status, b"", b""), self._time_limit) from None
        error = failure_of(status, process.report())
        if error is not None:
            raise error
        self.exit_status = result_of(self._command, status, b"", b"").exit_status


class EventStream:
    """Events, as they come. They are followed while the ``with`` block runs."""

    def __init__(self, runner: Runner, arguments: tuple[str, ...], object: str | None) -> None:
        self._runner = runner
        self._arguments = arguments
        self._object = object
        self._process: Process | None = None

    def __enter__(self) -> EventStream:
        self._runner.check()
        self._process = Process(self._runner.program, self._arguments)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, self._process = self._process, None
        if process is not None:
            try:
                process.end(calls.EXEC_GRACE)
            finally:
                process.close()

    def __iter__(self) -> Iterator[types.Event]:
        process = self._process
        if process is None:
            raise RuntimeError("events are read in their `with` block")
        lines, errors = Lines(), b""
        for chunk in process.chunks():
            if chunk.stream == "stderr":
                errors = (errors + chunk.data)[-MAX_EVENT:]
                continue
            for event in lines.push(chunk.data):
                if self._object in (None, event["object"]):
                    yield event
        status = process.wait()
        reply_of(calls.Call(self._arguments, lambda _: None), status, b"", errors, process.report())


class Lines:
    """Cuts bytes into lines, each of which is an event."""

    def __init__(self) -> None:
        self._rest = b""

    def push(self, data: bytes) -> Iterator[types.Event]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_EVENT:
            raise UnexpectedReplyError(f"banger printed an event of more than {MAX_EVENT} bytes.")
        for line in lines:
            try:
                event: types.Event = json.loads(line)
            except ValueError:
                raise UnexpectedReplyError("banger printed an event that is no JSON.", line) from None
            yield event

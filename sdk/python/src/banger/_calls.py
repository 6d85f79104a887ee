"""The command lines of banger, and how their output is read. Nothing is run here."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from . import _types as types
from ._errors import CommandFailedError, NotAFileError, OutputTooLargeError, UnexpectedReplyError
from ._results import ExecResult

__all__ = ["Call", "Exec"]

T = TypeVar("T")

#: A size: bytes, or a text such as ``"2GiB"``.
Size = int | str
#: Path of a file on the host.
HostPath = str | os.PathLike[str]

#: When to pull an image.
Pull = Literal["missing", "never", "always"]
#: When a sandbox that has stopped is started again.
Restart = Literal["no", "on-failure", "always"]
#: What runs a sandbox.
Vmm = Literal["auto", "firecracker", "qemu"]
#: Phase of the boot to wait for.
Wait = Literal["agent", "init", "boot"]
#: What of a repository is sent.
Mode = Literal["shallow", "full-copy"]

#: How much of the reply of a command is kept, in bytes.
MAX_REPLY = 64 << 20
#: How long a command that was told to end may take, in seconds, before it is told again. A job of the service is undone
#: in that time.
JOB_GRACE = 60.0
#: The same for a command in a sandbox, which may catch the first signal.
EXEC_GRACE = 5.0
#: How large a file may be that is read into memory, unless the call says otherwise.
MAX_FILE = 64 << 20
#: How much a command in a sandbox may write to each stream, unless the call says otherwise or the output is streamed.
MAX_OUTPUT = 16 << 20


@dataclass(frozen=True)
class Exec:
    """A command in a sandbox: the arguments of banger, and what else it gets."""

    command: tuple[str, ...]
    arguments: tuple[str, ...]
    #: The content of the file of variables.
    variables: bytes


@dataclass(frozen=True)
class Call(Generic[T]):
    """A run of banger whose output is read at once."""

    arguments: tuple[str, ...]
    parse: Callable[[bytes], T]
    input: bytes | None = None
    max_reply: int = MAX_REPLY
    #: What the reply is, for an error.
    what: str = "the reply of banger"
    #: The exit statuses with which it prints a reply.
    statuses: tuple[int, ...] = (0,)
    #: The command in a sandbox that it starts, if any.
    command: Exec | None = None


def _json(output: bytes) -> Any:
    try:
        return json.loads(output)
    except ValueError:
        raise UnexpectedReplyError("banger printed something that is no JSON.", output) from None


def _nothing(_output: bytes) -> None:
    return None


def _call(words: Sequence[str], *positionals: str) -> Call[Any]:
    """Returns the call of a verb with ``--json``. No positional is taken for an option."""
    return Call((*words, "--json", "--", *positionals), _json)


def _options(**values: object) -> list[str]:
    """Returns options by their names. Those that are None are left out."""
    words: list[str] = []
    for name, value in values.items():
        option = "--" + name.replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            words.append(option)
        elif isinstance(value, (list, tuple)):
            words += [f"{option}={item}" for item in value]
        else:
            words.append(f"{option}={value}")
    return words


def _switch(name: str, value: bool | None) -> list[str]:
    """Returns ``--name``, ``--no-name``, or nothing for None."""
    if value is None:
        return []
    return [f"--{name}" if value else f"--no-{name}"]


def _size(value: Size | None) -> str | None:
    # A number without a unit would be in MiB.
    return f"{value}B" if isinstance(value, int) else value


def _texts(name: str, value: Sequence[str] | None) -> list[str] | None:
    if isinstance(value, str):
        raise TypeError(f"{name} is a list of texts, not one text")
    return None if value is None else list(value)


def _list(name: str, value: Sequence[str | int]) -> Sequence[str | int]:
    if isinstance(value, str):
        raise TypeError(f"{name} is a list, not one text")
    return value


def version() -> Call[types.Version]:
    return _call(["version"])


def doctor() -> Call[list[types.Check]]:
    # A check that fails is a result.
    return replace(_call(["doctor"]), statuses=(0, 1))


def listing(filters: Sequence[str], labels: Mapping[str, str] | None) -> Call[list[types.SandboxProperties]]:
    wanted = (_texts("filters", filters) or []) + [f"label={key}={value}" for key, value in (labels or {}).items()]
    return _call(["vm", "list", *_options(filter=wanted)])


def show(reference: str) -> Call[types.SandboxProperties]:
    return _call(["vm", "show"], reference)


def images() -> Call[list[types.ListedImage]]:
    return _call(["image", "list"])


def pull(reference: str, name: str | None) -> Call[types.Image]:
    return _call(["image", "pull", "-q", *_options(name=name)], reference)


def create(
    *,
    name: str | None,
    image: str | None,
    pull: str | None,
    kernel: str | None,
    vcpus: int | None,
    memory: Size | None,
    root_size: Size | None,
    disk_size: Size | None,
    nat: bool | None,
    egress: Sequence[str] | None,
    restart: str | None,
    autostart: bool | None,
    publish: Sequence[str | int] | None,
    labels: Mapping[str, str] | None,
    vmm: str | None,
    timezone: str | None,
    idle: str | None,
    ready_timeout: int | None,
    profile: str | None,
    wait: str | None,
    start: bool,
) -> Call[types.SandboxProperties]:
    options = _options(
        name=name,
        image=image,
        pull=pull,
        kernel=kernel,
        vcpu=vcpus,
        memory=_size(memory),
        root_size=_size(root_size),
        disk_size=_size(disk_size),
        egress=_texts("egress", egress),
        restart=restart,
        publish=None if publish is None else [str(port) for port in _list("publish", publish)],
        label=[f"{key}={value}" for key, value in (labels or {}).items()],
        vmm=vmm,
        timezone=timezone,
        idle=idle,
        ready_timeout=ready_timeout,
        profile=profile,
        wait=wait,
        no_start=not start,
    )
    if egress is not None and not list(egress):
        options.append("--egress=none")
    options += _switch("nat", nat) + _switch("autostart", autostart)
    return _call(["vm", "create", "-q", *options])


def change(verb: str, id: str, **options: object) -> Call[types.Outcome]:
    """Returns the call of a verb that prints an outcome for each object."""
    # These have no progress to print.
    quiet = [] if verb in ("pause", "unpause") else ["-q"]
    call: Call[list[types.Outcome]] = _call(["vm", verb, *quiet, *_options(**options)], id)
    return Call(call.arguments, lambda output: _one(_json(output)))


def delete(*ids: str) -> Call[None]:
    call: Call[Any] = _call(["vm", "delete", "-q", "--force"], *ids)
    return replace(call, parse=_nothing)


def _one(rows: list[T]) -> T:
    if len(rows) != 1:
        raise UnexpectedReplyError(f"banger printed {len(rows)} rows for one sandbox.")
    return rows[0]


def fork(
    id: str, count: int | None, names: Sequence[str] | None, from_snapshot: str | None, start: bool
) -> Call[list[str]]:
    options = _options(
        count=count, name=_texts("names", names), from_snapshot=from_snapshot, no_start=not start
    )
    call = _call(["vm", "fork", "-q", *options], id)
    return replace(call, parse=lambda output: [row["id"] for row in _json(output) if row["id"] is not None])


def snapshot(id: str, name: str) -> Call[types.Snapshot]:
    return _call(["vm", "snapshot", "create", "-q"], id, name)


def snapshots(id: str) -> Call[list[types.Snapshot]]:
    return _call(["vm", "snapshot", "list"], id)


def delete_snapshot(id: str, name: str) -> Call[None]:
    return Call(("vm", "snapshot", "delete", "--", id, name), _nothing)


def rename(id: str, name: str) -> Call[types.SandboxProperties]:
    return _call(["vm", "rename"], id, name)


def egress(id: str) -> Call[types.Egress]:
    return _call(["vm", "egress"], id)


def change_egress(verb: str, id: str, entries: Sequence[str]) -> Call[None]:
    return Call(("vm", "egress", verb, "--", id, *entries), _nothing)


def listening(id: str) -> Call[list[types.ListeningPort]]:
    return _call(["vm", "ports"], id)


def publish(id: str, ports: Sequence[str | int]) -> Call[list[types.PublishedPort]]:
    return _call(["vm", "publish"], id, *(str(port) for port in ports))


def unpublish(id: str, ports: Sequence[str | int]) -> Call[None]:
    return Call(("vm", "unpublish", "--", id, *(str(port) for port in ports)), _nothing)


def stats(id: str) -> Call[types.Stats]:
    call = _call(["vm", "stats"], id)
    return replace(call, parse=lambda output: _one(_json(output)))


def logs(id: str, tail: int | None, exec: int | None) -> Call[str]:
    options = _options(tail=tail, exec=exec)
    return Call(("vm", "logs", "--raw", *options, "--", id), lambda output: output.decode(errors="replace"))


def commands(id: str) -> Call[list[types.Command]]:
    return _call(["vm", "commands"], id)


def files(id: str, path: str, recursive: bool) -> Call[list[types.File]]:
    return _call(["vm", "files", *_options(recursive=recursive)], id, path)


def read(id: str, path: str, max_bytes: int) -> Call[bytes]:
    """Returns the call that reads a file. It comes as an archive, so that an empty file and a missing one differ."""
    arguments = ("vm", "cp", "-q", "--follow-link", "--", f"{id}:{path}", "-")
    # The archive has a header, and zeros at its end.
    parse = lambda archive: _only_file(archive, path, max_bytes)  # noqa: E731
    return Call(arguments, parse, max_reply=max_bytes + (64 << 10), what=path)


def _only_file(archive: bytes, path: str, max_bytes: int) -> bytes:
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            entry = tar.next()
            # A file with holes can be of any size.
            if entry is not None and entry.size > max_bytes:
                raise OutputTooLargeError(path, max_bytes)
            content = tar.extractfile(entry) if entry is not None and entry.isreg() else None
            data = None if content is None else content.read()
    except tarfile.TarError as error:
        raise UnexpectedReplyError(f"banger wrote an archive that cannot be read: {error}.") from None
    if data is None:
        raise NotAFileError(path)
    return data


def write(id: str, path: str, data: bytes | str, mode: int, chown: str | None) -> Call[None]:
    """Returns the call that writes a file, which is sent as an archive with one entry."""
    directory, slash, name = path.rpartition("/")
    if name in ("", ".", ".."):
        raise ValueError(f"cannot write {path}: it is no name of a file")
    content = data.encode() if isinstance(data, str) else data
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(content), mode
        tar.addfile(entry, io.BytesIO(content))
    arguments = ("vm", "cp", "-q", *_options(chown=chown), "--", "-", f"{id}:{directory}{slash}")
    return Call(arguments, _nothing, input=packed.getvalue())


def host_path(path: HostPath) -> str:
    """Returns an absolute path, which banger takes for no path in a sandbox. The end keeps its meaning: ``.`` and ``..`` are
    what is in the directory."""
    text = os.fspath(path)
    last = text.rpartition("/")[2]
    end = "/." if last in (".", "..") else "/" if text.endswith("/") else ""
    return os.path.abspath(text).rstrip("/") + end or "/"


def upload(id: str, host: HostPath, path: str, chown: str | None) -> Call[None]:
    arguments = ("vm", "cp", "-q", *_options(chown=chown), "--", host_path(host), f"{id}:{path}")
    return Call(arguments, _nothing)


def download(id: str, path: str, host: HostPath) -> Call[None]:
    return Call(("vm", "cp", "-q", "--", f"{id}:{path}", host_path(host)), _nothing)


def prepare(id: str, path: HostPath, **options: object) -> Call[types.PreparedWorkspace]:
    if isinstance(options.get("include"), str):
        raise TypeError("include is a list of texts, not one text")
    return _call(["vm", "workspace", "prepare", "-q", *_options(**options)], id, os.path.abspath(path))


def export(id: str, **options: object) -> Call[types.Export]:
    return _call(["vm", "workspace", "export", "-q", *_options(**options)], id)


def fetch(id: str, **options: object) -> Call[types.Fetched]:
    return _call(["vm", "workspace", "fetch", "-q", *_options(**options)], id)


def events(all_users: bool) -> tuple[str, ...]:
    return ("events", "--json", *_options(all_users=all_users))


def detached(command: Exec) -> Call[int]:
    return Call(command.arguments, lambda output: int(_json(output)["id"]), command=command)


def exec_(
    id: str,
    command: tuple[str, ...],
    *,
    has_input: bool,
    detach: bool = False,
    user: str | None = None,
    workdir: str | None = None,
    env: Mapping[str, str] | None = None,
    share: Sequence[str] | None = None,
    proxy: bool | None = None,
    wait: str | None = None,
    guest_path: str | None = None,
    auto_prepare: bool | None = None,
) -> Exec:
    if not command:
        raise ValueError("a command has at least one word, the program")
    words = ["vm", "exec", *(["--detach", "--json"] if detach else ["--no-tty"])]
    if not has_input and not detach:
        words.append("--no-stdin")
    words += _options(user=user, workdir=workdir, share=_texts("share", share), wait=wait, guest_path=guest_path)
    words += _switch("proxy", proxy) + _switch("auto-prepare", auto_prepare)
    return Exec(command, (*words, "--", id, *command), _variables(env or {}))


def _variables(env: Mapping[str, str]) -> bytes:
    """Returns the content of a file of variables. On a command line, every user of the host could read them, and in the
    environment of banger they would change what it does."""
    entries: list[str] = []
    for name, value in env.items():
        if not name or name.startswith("#") or any(letter.isspace() or letter in "=\0" for letter in name):
            raise ValueError(f"cannot set the variable {name!r}: it is no name of a variable")
        if "\0" in value:
            raise ValueError(f"cannot set the variable {name!r}: its value has a zero byte")
        # Values can have line feeds.
        entries.append(f"{name}={value}\0")
    return "".join(entries).encode()


def checked(result: ExecResult) -> ExecResult:
    """Returns the result of a command that has succeeded, or raises an error."""
    if result.exit_status != 0:
        raise CommandFailedError(result)
    return result

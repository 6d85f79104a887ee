/**
 * The command lines of banger, and how their output is read. Nothing is run here.
 *
 * @module
 */

import { constants } from "node:os";
import { resolve } from "node:path";

import { pack, unpack } from "./archive.js";
import { UnexpectedReplyError } from "./errors.js";
import type * as types from "./types.js";

/** How much of the reply of a command is kept, in bytes. */
export const MAX_REPLY = 64 << 20;
/**
 * How long a command that was told to end may take, in milliseconds, before it is told again. A job of the service is undone
 * in that time.
 */
export const JOB_GRACE = 60_000;
/** The same for a command in a sandbox, which may catch the first signal. */
export const EXEC_GRACE = 5000;
/** How large a file may be that is read into memory, unless the call says otherwise. */
export const MAX_FILE = 64 << 20;
/** How much a command in a sandbox may write to each stream, unless the call says otherwise or the output is streamed. */
export const MAX_OUTPUT = 16 << 20;

/** A size: bytes, or a text such as `"2GiB"`. */
export type Size = number | string;

/** A run of banger whose output is read at once. */
export interface Call<T> {
  words: readonly string[];
  parse: (output: Buffer) => T;
  input?: Uint8Array;
  maxReply: number;
  /** What the reply is, for an error. */
  what: string;
  /** The exit statuses with which it prints a reply. */
  statuses: readonly number[];
  /** The command in a sandbox that it starts, if any. */
  command?: Exec;
}

/** A command in a sandbox: the arguments of banger, and what else it gets. */
export interface Exec {
  command: readonly string[];
  words: readonly string[];
  /** The content of the file of variables. */
  variables: string;
}

/** What a new sandbox is. What is left out is as in your settings, else as the service has it. */
export interface CreateOptions {
  name?: string;
  /** Image to clone. */
  image?: string;
  /** When to pull the image. */
  pull?: "missing" | "never" | "always";
  kernel?: string;
  vcpus?: number;
  memory?: Size;
  root_size?: Size;
  disk_size?: Size;
  /** Whether it has internet access. */
  nat?: boolean;
  /** What it may reach beyond the host; an empty list is nothing. */
  egress?: readonly string[];
  restart?: "no" | "on-failure" | "always";
  autostart?: boolean;
  /** Ports to publish on the host: `80` on a free port, or `"8080:80"`. */
  publish?: readonly (string | number)[];
  labels?: Readonly<Record<string, string>>;
  vmm?: "auto" | "firecracker" | "qemu";
  timezone?: string;
  /** What happens when it idles: `suspend=TIME`, `suspend-no-wake=TIME`, `stop=TIME` or `off`. */
  idle?: string;
  /** How long its guest may take to become ready, in seconds. */
  ready_timeout?: number;
  profile?: string;
  /** Phase of the boot to wait for. */
  wait?: "agent" | "init" | "boot";
  /** Whether it is started; it is, unless this is false. */
  start?: boolean;
}

/** How a command in a sandbox runs. */
export interface CommandOptions {
  user?: string;
  workdir?: string;
  env?: Readonly<Record<string, string>>;
  /** Credentials of yours that it may use: `git:HOST`, `ssh-agent`. */
  share?: readonly string[];
  /** Whether it gets your proxies. */
  proxy?: boolean;
  /** Phase of the boot to wait for first. */
  wait?: "agent" | "init" | "boot";
  /** The workspace in which it runs. */
  guest_path?: string;
  /** Whether changes of the repository on the host are sent first. */
  auto_prepare?: boolean;
}

type Value = string | number | boolean | readonly (string | number)[] | null | undefined;

function json(output: Buffer): unknown {
  try {
    return JSON.parse(output.toString("utf8"));
  } catch {
    throw new UnexpectedReplyError("banger printed something that is no JSON.", output);
  }
}

function call<T>(words: readonly string[], parse: (output: Buffer) => T): Call<T> {
  return { words, parse, maxReply: MAX_REPLY, what: "the reply of banger", statuses: [0] };
}

/** Returns the call of a verb with `--json`. No positional is taken for an option. */
function read<T>(words: readonly string[], ...positionals: string[]): Call<T> {
  return call([...words, "--json", "--", ...positionals], (output) => json(output) as T);
}

/** Returns a call whose output is of no use. */
export function nothing(words: readonly string[]): Call<void> {
  return call(words, () => undefined);
}

/** Returns options by their names. Those that are undefined are left out. */
function options(values: Record<string, Value>): string[] {
  return Object.entries(values).flatMap(([name, value]) => {
    const option = `--${name.replaceAll("_", "-")}`;
    if (value === undefined || value === null || value === false) {
      return [];
    }
    if (value === true) {
      return [option];
    }
    const items = typeof value === "object" ? value : [value];
    return items.map((item) => `${option}=${item}`);
  });
}

/** Returns `--name`, `--no-name`, or nothing. */
function choice(name: string, value: boolean | undefined): string[] {
  return value === undefined ? [] : [value ? `--${name}` : `--no-${name}`];
}

/** Returns a list as it is. A text would be taken apart into letters. */
function listed<T>(name: string, value: readonly T[] | undefined): readonly T[] | undefined {
  if (typeof value === "string") {
    throw new TypeError(`${name} is a list, not one text`);
  }
  return value;
}

function size(value: Size | undefined): string | undefined {
  // A number without a unit would be in MiB.
  return typeof value === "number" ? `${value}B` : value;
}

function labelled(labels: Readonly<Record<string, string>> | undefined): string[] {
  return Object.entries(labels ?? {}).map(([key, value]) => `${key}=${value}`);
}

/** Returns the number of a signal. */
export function signalNumber(name: NodeJS.Signals | null): number {
  return name === null ? 0 : constants.signals[name];
}

export function version(): Call<types.Version> {
  return read(["version"]);
}

export function doctor(): Call<types.Check[]> {
  // A check that fails is a result.
  return { ...read<types.Check[]>(["doctor"]), statuses: [0, 1] };
}

export function list(
  filters: readonly string[] = [],
  labels?: Readonly<Record<string, string>>,
): Call<types.SandboxProperties[]> {
  const filter = [...(listed("filters", filters) ?? []), ...labelled(labels).map((label) => `label=${label}`)];
  return read(["vm", "list", ...options({ filter })]);
}

export function show(reference: string): Call<types.SandboxProperties> {
  return read(["vm", "show"], reference);
}

export function images(): Call<types.ListedImage[]> {
  return read(["image", "list"]);
}

export function pull(reference: string, name?: string): Call<types.Image> {
  return read(["image", "pull", "-q", ...options({ name })], reference);
}

export function create(wanted: CreateOptions): Call<types.SandboxProperties> {
  const words = options({
    name: wanted.name,
    image: wanted.image,
    pull: wanted.pull,
    kernel: wanted.kernel,
    vcpu: wanted.vcpus,
    memory: size(wanted.memory),
    root_size: size(wanted.root_size),
    disk_size: size(wanted.disk_size),
    egress: wanted.egress?.length === 0 ? ["none"] : listed("egress", wanted.egress),
    restart: wanted.restart,
    publish: listed("publish", wanted.publish),
    label: labelled(wanted.labels),
    vmm: wanted.vmm,
    timezone: wanted.timezone,
    idle: wanted.idle,
    ready_timeout: wanted.ready_timeout,
    profile: wanted.profile,
    wait: wanted.wait,
    no_start: wanted.start === false,
  });
  words.push(...choice("nat", wanted.nat), ...choice("autostart", wanted.autostart));
  return read(["vm", "create", "-q", ...words]);
}

/** Returns the call of a verb that prints an outcome for each object. */
export function change(verb: string, id: string, values: Record<string, Value> = {}): Call<types.Outcome> {
  // These have no progress to print.
  const quiet = ["pause", "unpause"].includes(verb) ? [] : ["-q"];
  const words = read(["vm", verb, ...quiet, ...options(values)], id).words;
  return call(words, (output) => one(json(output) as types.Outcome[]));
}

function one<T>(rows: readonly T[]): T {
  const [row] = rows;
  if (row === undefined || rows.length !== 1) {
    throw new UnexpectedReplyError(`banger printed ${rows.length} rows for one sandbox.`);
  }
  return row;
}

export function remove(...ids: string[]): Call<void> {
  return nothing(["vm", "delete", "-q", "--force", "--json", "--", ...ids]);
}

export function fork(
  id: string,
  wanted: { count?: number; names?: readonly string[]; from_snapshot?: string; start?: boolean },
): Call<string[]> {
  const { count, names, from_snapshot, start } = wanted;
  const words = options({ count, name: listed("names", names), from_snapshot, no_start: start === false });
  return call(["vm", "fork", "-q", ...words, "--json", "--", id], (output) =>
    (json(output) as types.Outcome[]).flatMap((row) => (row.id === null ? [] : [row.id])),
  );
}

export function snapshot(id: string, name: string): Call<types.Snapshot> {
  return read(["vm", "snapshot", "create", "-q"], id, name);
}

export function snapshots(id: string): Call<types.Snapshot[]> {
  return read(["vm", "snapshot", "list"], id);
}

export function deleteSnapshot(id: string, name: string): Call<void> {
  return nothing(["vm", "snapshot", "delete", "--", id, name]);
}

export function rename(id: string, name: string): Call<types.SandboxProperties> {
  return read(["vm", "rename"], id, name);
}

export function egress(id: string): Call<types.Egress> {
  return read(["vm", "egress"], id);
}

export function changeEgress(verb: "allow" | "deny", id: string, entries: readonly string[]): Call<void> {
  return nothing(["vm", "egress", verb, "--", id, ...entries]);
}

export function listening(id: string): Call<types.ListeningPort[]> {
  return read(["vm", "ports"], id);
}

export function publish(id: string, ports: readonly (string | number)[]): Call<types.PublishedPort[]> {
  return read(["vm", "publish"], id, ...ports.map(String));
}

export function unpublish(id: string, ports: readonly (string | number)[]): Call<void> {
  return nothing(["vm", "unpublish", "--", id, ...ports.map(String)]);
}

export function stats(id: string): Call<types.Stats> {
  return call(read(["vm", "stats"], id).words, (output) => one(json(output) as types.Stats[]));
}

export function logs(id: string, wanted: { tail?: number; exec?: number }): Call<string> {
  return call(["vm", "logs", "--raw", ...options(wanted), "--", id], (output) => output.toString("utf8"));
}

export function commands(id: string): Call<types.Command[]> {
  return read(["vm", "commands"], id);
}

export function files(id: string, path: string, recursive: boolean): Call<types.File[]> {
  return read(["vm", "files", ...options({ recursive })], id, path);
}

/** Returns the call that reads a file. It comes as an archive, so that an empty file and a missing one differ. */
export function readFile(id: string, path: string, maxBytes: number): Call<Buffer> {
  const words = ["vm", "cp", "-q", "--follow-link", "--", `${id}:${path}`, "-"];
  return {
    ...call(words, (archive) => unpack(archive, path, maxBytes)),
    // The archive has a header, and zeros at its end.
    maxReply: maxBytes + (64 << 10),
    what: path,
  };
}

/** Returns the call that writes a file, which is sent as an archive with one entry. */
export function writeFile(
  id: string,
  path: string,
  data: string | Uint8Array,
  wanted: { mode?: number; chown?: string },
): Call<void> {
  const end = path.lastIndexOf("/") + 1;
  const name = path.slice(end);
  if (["", ".", ".."].includes(name)) {
    throw new TypeError(`cannot write ${path}: it is no name of a file`);
  }
  const words = ["vm", "cp", "-q", ...options({ chown: wanted.chown }), "--", "-", `${id}:${path.slice(0, end)}`];
  return { ...nothing(words), input: pack(name, Buffer.from(data), wanted.mode ?? 0o644) };
}

/**
 * Returns an absolute path, which banger takes for no path in a sandbox. The end keeps its meaning: `.` and `..` are what is in
 * the directory.
 */
export function hostPath(path: string): string {
  const end = /(^|\/)\.{1,2}$/.test(path) ? "/." : path.endsWith("/") ? "/" : "";
  const absolute = resolve(path).replace(/\/$/, "") + end;
  return absolute === "" ? "/" : absolute;
}

export function upload(id: string, host: string, path: string, wanted: { chown?: string }): Call<void> {
  return nothing(["vm", "cp", "-q", ...options({ chown: wanted.chown }), "--", hostPath(host), `${id}:${path}`]);
}

export function download(id: string, path: string, host: string): Call<void> {
  return nothing(["vm", "cp", "-q", "--", `${id}:${path}`, hostPath(host)]);
}

export function prepare(id: string, path: string, values: Record<string, Value>): Call<types.PreparedWorkspace> {
  if (typeof values["include"] === "string") {
    throw new TypeError("include is a list, not one text");
  }
  return read(["vm", "workspace", "prepare", "-q", ...options(values)], id, resolve(path));
}

export function exported(id: string, values: Record<string, Value>): Call<types.Export> {
  return read(["vm", "workspace", "export", "-q", ...options(values)], id);
}

export function fetched(id: string, values: Record<string, Value>): Call<types.Fetched> {
  return read(["vm", "workspace", "fetch", "-q", ...options(values)], id);
}

export function events(allUsers: boolean): string[] {
  return ["events", "--json", ...options({ all_users: allUsers })];
}

export function detached(command: Exec): Call<number> {
  return { ...call(command.words, (output) => (json(output) as types.Detached).id), command };
}

export function exec(
  id: string,
  command: readonly string[],
  wanted: CommandOptions,
  how: { hasInput: boolean; detach: boolean },
): Exec {
  if (typeof command === "string" || command.length === 0) {
    throw new TypeError("a command is a list with at least one word, the program");
  }
  const words = [
    "vm",
    "exec",
    ...(how.detach ? ["--detach", "--json"] : ["--no-tty"]),
    ...(how.hasInput || how.detach ? [] : ["--no-stdin"]),
    ...options({
      user: wanted.user,
      workdir: wanted.workdir,
      share: listed("share", wanted.share),
      wait: wanted.wait,
      guest_path: wanted.guest_path,
    }),
    ...choice("proxy", wanted.proxy),
    ...choice("auto-prepare", wanted.auto_prepare),
    "--",
    id,
    ...command,
  ];
  return { command, words, variables: joined(wanted.env ?? {}) };
}

/**
 * Returns the content of a file of variables. On a command line, every user of the host could read them, and in the environment
 * of banger they would change what it does.
 */
function joined(env: Readonly<Record<string, string>>): string {
  let variables = "";
  for (const [name, value] of Object.entries(env)) {
    if (name === "" || name.startsWith("#") || /[\s=\0]/.test(name)) {
      throw new TypeError(`cannot set the variable ${JSON.stringify(name)}: it is no name of a variable`);
    }
    if (value.includes("\0")) {
      throw new TypeError(`cannot set the variable ${JSON.stringify(name)}: its value has a zero byte`);
    }
    // Values can have line feeds.
    variables += `${name}=${value}\0`;
  }
  return variables;
}

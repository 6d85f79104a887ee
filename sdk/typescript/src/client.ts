/**
 * The client.
 *
 * @module
 */

import * as calls from "./calls.js";
import type { CommandOptions, CreateOptions } from "./calls.js";
import { NoSuchVMError } from "./codes.js";
import { CommandFailedError, UnexpectedReplyError } from "./errors.js";
import { Runner } from "./process.js";
import type { Input } from "./process.js";
import type { Chunk, ExecResult } from "./results.js";
import type * as types from "./types.js";

/** The longest line of an event, in characters. */
const MAX_EVENT = 1 << 20;

/** How a call ends early. */
export interface CallOptions {
  /** Ends the call, and what it has started. */
  signal?: AbortSignal;
}

/** How a command runs whose output is returned at its end. */
export interface ExecOptions extends CommandOptions, CallOptions {
  /** What it reads. */
  input?: Input;
  /** Whether an exit status other than 0 is an error. */
  check?: boolean;
  /** Seconds after which it is ended. */
  time_limit?: number;
  /** How many bytes it may write to each stream. */
  max_output?: number;
}

/** How a command runs whose output comes while it runs. */
export type StreamOptions = Omit<ExecOptions, "check" | "max_output">;

/** The command `banger` on this host, with the rights of its user. */
export class Banger {
  /** @internal */
  readonly runner: Runner;

  /** `program` is the name or the path of the command. */
  constructor({ program = "banger" }: { program?: string } = {}) {
    this.runner = new Runner(program);
  }

  /** Returns the versions of the command and of the service. */
  version(options: CallOptions = {}): Promise<types.Version> {
    return this.runner.run(calls.version(), options.signal);
  }

  /** Checks whether this host is ready. */
  doctor(options: CallOptions = {}): Promise<types.Check[]> {
    return this.runner.run(calls.doctor(), options.signal);
  }

  /** Returns the sandboxes that match, running or not. Filters are those of `banger list`: `state=running`. */
  async list(
    options: CallOptions & { filters?: readonly string[]; labels?: Readonly<Record<string, string>> } = {},
  ): Promise<Sandbox[]> {
    const rows = await this.runner.run(calls.list(options.filters, options.labels), options.signal);
    return rows.map((row) => new Sandbox(this, row));
  }

  /** Returns the sandbox with this name, id or id prefix. */
  async get(reference: string, options: CallOptions = {}): Promise<Sandbox> {
    return new Sandbox(this, await this.runner.run(calls.show(reference), options.signal));
  }

  /**
   * Creates a sandbox and starts it. `workspace` is a directory of a repository that is sent into the sandbox; commands then
   * run in it.
   *
   * A sandbox whose guest does not become ready is kept, so that its console can be read: see the `remedy` of the error.
   */
  async create(options: CreateOptions & CallOptions & { workspace?: string } = {}): Promise<Sandbox> {
    const { signal, workspace } = options;
    const made = await this.runner.run(calls.create(options), signal, (made) => calls.remove(made.id));
    const sandbox = new Sandbox(this, made);
    try {
      signal?.throwIfAborted();
      if (workspace !== undefined) {
        await sandbox.workspace.prepare(workspace, signal === undefined ? {} : { signal });
      }
      return sandbox;
    } catch (error) {
      await this.runner.undo(calls.remove(sandbox.id), error);
      throw error;
    }
  }

  /** Returns your images and the shared ones. */
  images(options: CallOptions = {}): Promise<types.ListedImage[]> {
    return this.runner.run(calls.images(), options.signal);
  }

  /** Pulls an image from a catalog or a registry. */
  pullImage(reference: string, options: CallOptions & { name?: string } = {}): Promise<types.Image> {
    return this.runner.run(calls.pull(reference, options.name), options.signal);
  }

  /** Follows the events of your sandboxes, images and jobs, until the loop is left. */
  events(options: CallOptions & { all_users?: boolean } = {}): AsyncGenerator<types.Event> {
    return follow(this.runner, options.all_users ?? false, null, options.signal);
  }
}

/** The client of sandboxes without one of their own. */
const DEFAULT = new Banger();

/** A sandbox. With `await using`, it is deleted at the end of the block. */
export class Sandbox {
  /** What banger printed last about it; `show` reads it again. */
  properties: types.SandboxProperties;
  readonly files: Files;
  readonly ports: Ports;
  readonly egress: Egress;
  readonly workspace: Workspace;
  readonly #client: Banger;
  readonly #runner: Runner;

  /** @internal */
  constructor(client: Banger, properties: types.SandboxProperties) {
    this.#client = client;
    this.#runner = client.runner;
    this.properties = properties;
    this.files = new Files(this.#runner, properties.id);
    this.ports = new Ports(this.#runner, properties.id);
    this.egress = new Egress(this.#runner, properties.id);
    this.workspace = new Workspace(this.#runner, properties.id);
  }

  /** Creates a sandbox and starts it: see `Banger.create`. */
  static create(
    options: CreateOptions & CallOptions & { workspace?: string; client?: Banger } = {},
  ): Promise<Sandbox> {
    return (options.client ?? DEFAULT).create(options);
  }

  /** Creates a sandbox, passes it to a function, and deletes it when that has ended. */
  static async using<T>(
    options: CreateOptions & CallOptions & { workspace?: string; client?: Banger },
    use: (sandbox: Sandbox) => Promise<T>,
  ): Promise<T> {
    const sandbox = await Sandbox.create(options);
    try {
      return await use(sandbox);
    } finally {
      await sandbox.delete();
    }
  }

  /** Returns the sandbox with this name, id or id prefix. */
  static get(reference: string, options: CallOptions & { client?: Banger } = {}): Promise<Sandbox> {
    return (options.client ?? DEFAULT).get(reference, options);
  }

  /** Returns the sandboxes that match, running or not. */
  static list(
    options: CallOptions & {
      client?: Banger;
      filters?: readonly string[];
      labels?: Readonly<Record<string, string>>;
    } = {},
  ): Promise<Sandbox[]> {
    return (options.client ?? DEFAULT).list(options);
  }

  /** Its id, which never changes. */
  get id(): string {
    return this.properties.id;
  }

  /** Its name. */
  get name(): string {
    return this.properties.name;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.delete();
  }

  /** Reads its properties again. */
  async show(options: CallOptions = {}): Promise<types.SandboxProperties> {
    this.properties = await this.#runner.run(calls.show(this.id), options.signal);
    return this.properties;
  }

  /** Boots it, and waits until its guest is ready. */
  start(options: CallOptions & { wait?: "agent" | "init" | "boot" } = {}): Promise<types.Outcome> {
    return this.#runner.run(calls.change("start", this.id, { wait: options.wait }), options.signal);
  }

  /** Shuts it down. Its guest has `timeout` seconds for that, and none with `force`. */
  stop(options: CallOptions & { timeout?: number; force?: boolean } = {}): Promise<types.Outcome> {
    const { timeout, force } = options;
    return this.#runner.run(calls.change("stop", this.id, { timeout, force }), options.signal);
  }

  /** Shuts it down and boots it again. */
  restart(options: CallOptions & { timeout?: number; force?: boolean } = {}): Promise<types.Outcome> {
    const { timeout, force } = options;
    return this.#runner.run(calls.change("restart", this.id, { timeout, force }), options.signal);
  }

  /** Pauses it: it keeps its memory, and gets no processor time. */
  pause(options: CallOptions = {}): Promise<types.Outcome> {
    return this.#runner.run(calls.change("pause", this.id), options.signal);
  }

  /** Continues it after `pause`. */
  unpause(options: CallOptions = {}): Promise<types.Outcome> {
    return this.#runner.run(calls.change("unpause", this.id), options.signal);
  }

  /** Writes its memory to disk, and ends its VMM. It takes neither memory nor processor time then. */
  suspend(options: CallOptions = {}): Promise<types.Outcome> {
    return this.#runner.run(calls.change("suspend", this.id), options.signal);
  }

  /** Continues it after `suspend`. */
  resume(options: CallOptions = {}): Promise<types.Outcome> {
    return this.#runner.run(calls.change("resume", this.id), options.signal);
  }

  /** Renames it. */
  async rename(name: string, options: CallOptions = {}): Promise<void> {
    this.properties = await this.#runner.run(calls.rename(this.id, name), options.signal);
  }

  /** Deletes it with its disks and snapshots, even if it runs. One that is gone is deleted already. */
  async delete(options: CallOptions = {}): Promise<void> {
    try {
      await this.#runner.run(calls.remove(this.id), options.signal);
    } catch (error) {
      if (!(error instanceof NoSuchVMError)) {
        throw error;
      }
    }
  }

  /** Makes new sandboxes from this one, or from a snapshot of it. If one of them does not start, none is kept. */
  async fork(
    options: CallOptions & {
      count?: number;
      names?: readonly string[];
      from_snapshot?: string;
      start?: boolean;
    } = {},
  ): Promise<Sandbox[]> {
    const undo = (ids: string[]): calls.Call<void> | null => (ids.length === 0 ? null : calls.remove(...ids));
    const ids = await this.#runner.run(calls.fork(this.id, options), options.signal, undo);
    const found = await Promise.allSettled(ids.map((id) => this.#client.get(id, options)));
    const failed = found.find((result): result is PromiseRejectedResult => result.status === "rejected");
    if (failed !== undefined) {
      // The caller has no other hold of them.
      await this.#runner.undo(calls.remove(...ids), failed.reason);
      throw failed.reason;
    }
    return found.flatMap((result) => (result.status === "fulfilled" ? [result.value] : []));
  }

  /** Creates a snapshot of it. */
  snapshot(name: string, options: CallOptions = {}): Promise<types.Snapshot> {
    return this.#runner.run(calls.snapshot(this.id, name), options.signal);
  }

  /** Returns its snapshots. */
  snapshots(options: CallOptions = {}): Promise<types.Snapshot[]> {
    return this.#runner.run(calls.snapshots(this.id), options.signal);
  }

  /** Deletes a snapshot of it. */
  deleteSnapshot(name: string, options: CallOptions = {}): Promise<void> {
    return this.#runner.run(calls.deleteSnapshot(this.id, name), options.signal);
  }

  /** Returns its resource usage. */
  stats(options: CallOptions = {}): Promise<types.Stats> {
    return this.#runner.run(calls.stats(this.id), options.signal);
  }

  /** Returns its console, or the output of the detached command with the number `exec`; of that the last `tail` lines. */
  logs(options: CallOptions & { tail?: number; exec?: number } = {}): Promise<string> {
    const { signal, ...wanted } = options;
    return this.#runner.run(calls.logs(this.id, wanted), signal);
  }

  /** Follows its events, until the loop is left. */
  events(options: CallOptions = {}): AsyncGenerator<types.Event> {
    return follow(this.#runner, false, this.id, options.signal);
  }

  /**
   * Runs a command, without a shell, and returns its exit status and output.
   *
   * With `check`, another status than 0 throws `CommandFailedError`. After `time_limit` seconds the command is ended, and
   * `TimeLimitError` thrown. A stream with more than `max_output` bytes ends it with `OutputTooLargeError`; `stream` has no
   * such limit.
   */
  async exec(command: readonly string[], options: ExecOptions = {}): Promise<ExecResult> {
    const { input, check, time_limit, max_output = calls.MAX_OUTPUT, signal } = options;
    const wanted = calls.exec(this.id, command, options, { hasInput: input !== undefined, detach: false });
    const result = await this.#runner.exec(wanted, { input, time_limit, max_output, signal });
    if (check === true && result.exit_status !== 0) {
      throw new CommandFailedError(result);
    }
    return result;
  }

  /** Runs a command, and gives its output as it comes. It starts with the loop over the output, and ends with it. */
  stream(command: readonly string[], options: StreamOptions = {}): CommandStream {
    const hasInput = options.input !== undefined;
    const wanted = calls.exec(this.id, command, options, { hasInput, detach: false });
    return new CommandStream(() => this.#runner.stream(wanted, options));
  }

  /** Starts a command in the background, and returns its number. It runs until its sandbox stops. */
  execDetached(
    command: readonly string[],
    options: Omit<CommandOptions, "share"> & CallOptions = {},
  ): Promise<number> {
    const wanted = calls.exec(this.id, command, options, { hasInput: false, detach: true });
    return this.#runner.run(calls.detached(wanted), options.signal);
  }

  /** Returns the detached commands, and how they ended. */
  commands(options: CallOptions = {}): Promise<types.Command[]> {
    return this.#runner.run(calls.commands(this.id), options.signal);
  }
}

/** The files of a sandbox. Paths are absolute, or below the home directory of the user that commands run as. */
export class Files {
  readonly #runner: Runner;
  readonly #id: string;

  /** @internal */
  constructor(runner: Runner, id: string) {
    this.#runner = runner;
    this.#id = id;
  }

  /** Returns the content of a file. A larger one throws `OutputTooLargeError`. */
  read(path: string, options: CallOptions & { max_bytes?: number } = {}): Promise<Buffer> {
    const maxBytes = options.max_bytes ?? calls.MAX_FILE;
    return this.#runner.run(calls.readFile(this.#id, path, maxBytes), options.signal);
  }

  /** Returns the content of a file as text. */
  async readText(path: string, options: CallOptions & { max_bytes?: number } = {}): Promise<string> {
    return (await this.read(path, options)).toString("utf8");
  }

  /** Writes a file. Replaces an existing one, and creates missing directories. */
  write(
    path: string,
    data: string | Uint8Array,
    options: CallOptions & { mode?: number; chown?: string } = {},
  ): Promise<void> {
    return this.#runner.run(calls.writeFile(this.#id, path, data, options), options.signal);
  }

  /** Returns what is in a directory, or everything below it. The path is absolute. */
  list(path: string, options: CallOptions & { recursive?: boolean } = {}): Promise<types.File[]> {
    return this.#runner.run(calls.files(this.#id, path, options.recursive ?? false), options.signal);
  }

  /** Copies a file or a directory of the host into the sandbox, as `banger cp` does. */
  upload(host_path: string, path: string, options: CallOptions & { chown?: string } = {}): Promise<void> {
    return this.#runner.run(calls.upload(this.#id, host_path, path, options), options.signal);
  }

  /** Copies a file or a directory out of the sandbox, as `banger cp` does. */
  download(path: string, host_path: string, options: CallOptions = {}): Promise<void> {
    return this.#runner.run(calls.download(this.#id, path, host_path), options.signal);
  }
}

/** The ports of a sandbox. */
export class Ports {
  readonly #runner: Runner;
  readonly #id: string;

  /** @internal */
  constructor(runner: Runner, id: string) {
    this.#runner = runner;
    this.#id = id;
  }

  /** Returns the ports on which the sandbox listens. */
  list(options: CallOptions = {}): Promise<types.ListeningPort[]> {
    return this.#runner.run(calls.listening(this.#id), options.signal);
  }

  /** Returns the ports that are published on the host. */
  published(options: CallOptions = {}): Promise<types.PublishedPort[]> {
    return this.#runner.run(calls.publish(this.#id, []), options.signal);
  }

  /** Publishes ports on the host: `80` on a free port, or `"8080:80"`. Returns them. */
  publish(...ports: [string | number, ...(string | number)[]]): Promise<types.PublishedPort[]> {
    return this.#runner.run(calls.publish(this.#id, ports));
  }

  /** Stops publishing these ports of the host. */
  unpublish(...ports: [string | number, ...(string | number)[]]): Promise<void> {
    return this.#runner.run(calls.unpublish(this.#id, ports));
  }
}

/** What a sandbox may reach beyond the host. */
export class Egress {
  readonly #runner: Runner;
  readonly #id: string;

  /** @internal */
  constructor(runner: Runner, id: string) {
    this.#runner = runner;
    this.#id = id;
  }

  /** Returns what it may reach, and what it was denied. */
  show(options: CallOptions = {}): Promise<types.Egress> {
    return this.#runner.run(calls.egress(this.#id), options.signal);
  }

  /** Lets it reach more: hosts such as `"github.com"` or `"*.example.com:443"`, or presets. */
  allow(...entries: [string, ...string[]]): Promise<void> {
    return this.#runner.run(calls.changeEgress("allow", this.#id, entries));
  }

  /** Takes back what it may reach. Its connections there end. */
  deny(...entries: [string, ...string[]]): Promise<void> {
    return this.#runner.run(calls.changeEgress("deny", this.#id, entries));
  }
}

/** The repository in a sandbox. */
export class Workspace {
  readonly #runner: Runner;
  readonly #id: string;

  /** @internal */
  constructor(runner: Runner, id: string) {
    this.#runner = runner;
    this.#id = id;
  }

  /** Sends the repository in this directory of the host, with its uncommitted changes. */
  prepare(
    path: string,
    options: CallOptions & {
      guest_path?: string;
      mode?: "shallow" | "full-copy";
      branch?: string;
      include_untracked?: boolean;
      include?: readonly string[];
    } = {},
  ): Promise<types.PreparedWorkspace> {
    const { signal, ...wanted } = options;
    return this.#runner.run(calls.prepare(this.#id, path, wanted), signal);
  }

  /**
   * Returns what has changed there. With `apply` it comes back into the work tree, with `branch` as a commit on a new branch.
   */
  export(
    options: CallOptions & { apply?: boolean; merge?: boolean; branch?: string; guest_path?: string } = {},
  ): Promise<types.Export> {
    const { signal, ...wanted } = options;
    return this.#runner.run(calls.exported(this.#id, wanted), signal);
  }

  /** Fetches the commits made there to `refs/banger/NAME/`. */
  fetch(options: CallOptions & { branch?: string; guest_path?: string } = {}): Promise<types.Fetched> {
    const { signal, ...wanted } = options;
    return this.#runner.run(calls.fetched(this.#id, wanted), signal);
  }
}

/** The output of a command, as it comes. It runs while the loop over it does, at most. */
export class CommandStream implements AsyncIterable<Chunk> {
  /** The exit status, once the output has ended. */
  exit_status: number | null = null;
  #start: (() => AsyncGenerator<Chunk, number>) | null;

  /** @internal */
  constructor(start: () => AsyncGenerator<Chunk, number>) {
    this.#start = start;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Chunk> {
    const start = this.#start;
    if (start === null) {
      throw new TypeError("a stream is read once");
    }
    this.#start = null;
    this.exit_status = yield* start();
  }
}

async function* follow(
  runner: Runner,
  allUsers: boolean,
  object: string | null,
  signal: AbortSignal | undefined,
): AsyncGenerator<types.Event> {
  for await (const line of runner.lines(calls.events(allUsers), MAX_EVENT, signal)) {
    let event: types.Event;
    try {
      event = JSON.parse(line) as types.Event;
    } catch {
      throw new UnexpectedReplyError("banger printed an event that is no JSON.", line);
    }
    if (object === null || event.object === object) {
      yield event;
    }
  }
}

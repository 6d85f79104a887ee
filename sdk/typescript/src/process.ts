/**
 * Runs the command `banger`, without a shell, and makes sure that nothing of it is left running.
 *
 * @module
 */

import { spawn } from "node:child_process";
import type { ChildProcess, StdioOptions } from "node:child_process";
import { randomUUID } from "node:crypto";
import { closeSync, openSync, readSync, unlinkSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Readable } from "node:stream";

import { BangerError } from "./base.js";
import { NoSuchVMError } from "./codes.js";
import * as calls from "./calls.js";
import type { Call, Exec } from "./calls.js";
import {
  OutputTooLargeError,
  ProgramNotFoundError,
  ProgramTooOldError,
  TimeLimitError,
  UnexpectedReplyError,
  endingError,
  errorOf,
} from "./errors.js";
import { ExecResult } from "./results.js";
import type { Chunk } from "./results.js";

/** What a command reads: bytes, a text, or pieces of bytes. */
export type Input = string | Uint8Array | Iterable<Uint8Array> | AsyncIterable<Uint8Array>;

/** The oldest version of the command that has what this package uses. */
const NEEDED = "0.1.0";
/** How many pieces of output wait for their reader. */
const QUEUE = 16;
/** How much of standard error is kept for an error. */
const MAX_ERRORS = 64 << 10;
/** How much of the file of errors is read. */
const MAX_REPORT = 1 << 20;
/** How long a command may take to end after the second signal, in milliseconds. */
const LAST_GRACE = 5000;
/** The number of the first descriptor after the standard ones. */
const FIRST = 3;

/** The time limit of a command has passed. */
class DeadlinePassed extends Error {}

/** What is still running when this process ends. */
const running = new Set<ChildProcess>();
/** The signals by which a terminal or a supervisor ends this process. None of them reaches its children by itself. */
const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
/** Errors of a start that are about the program. Others are about this process, or its arguments. */
const NOT_FOUND = ["ENOENT", "ENOTDIR", "EACCES", "ENOEXEC"];

function endAll(): void {
  running.forEach((child) => child.kill("SIGTERM"));
}

/** Ends what is running, and this process as if nobody had listened, unless the program itself handles the signal. */
function onSignal(name: NodeJS.Signals): void {
  if (process.listenerCount(name) === 1) {
    endAll();
    process.removeListener(name, onSignal);
    process.kill(process.pid, name);
  }
}

function watch(child: ChildProcess): void {
  if (running.size === 0) {
    process.on("exit", endAll);
    // Before those of the program, of which one that listens once is still counted then.
    SIGNALS.forEach((name) => process.prependListener(name, onSignal));
  }
  running.add(child);
  child.once("exit", () => {
    running.delete(child);
    if (running.size === 0) {
      process.removeListener("exit", endAll);
      SIGNALS.forEach((name) => process.removeListener(name, onSignal));
    }
  });
}

/** Opens a new file without a name. */
function openUnnamed(content = Buffer.alloc(0)): number {
  let failure: unknown;
  // The first one is in memory on most hosts.
  for (const directory of [process.env["XDG_RUNTIME_DIR"], tmpdir()]) {
    if (directory === undefined) {
      continue;
    }
    const path = join(directory, `banger-${randomUUID()}`);
    try {
      const file = openSync(path, "wx+", 0o600);
      unlinkSync(path);
      for (let at = 0; at < content.length; at += writeSync(file, content, at, content.length - at, at));
      return file;
    } catch (error) {
      failure = error;
    }
  }
  throw failure;
}

/** A running `banger`. */
export class Process {
  #child: ChildProcess;
  #files: number[];
  #queue: Chunk[] = [];
  #pipes: Readable[];
  #open = 0;
  #status: number | null = null;
  #failure: unknown = null;
  #isEnding = false;
  #signal: AbortSignal | undefined;
  #wake: () => void = () => undefined;
  readonly #onAbort = (): void => this.#wake();

  private constructor(child: ChildProcess, files: number[], signal: AbortSignal | undefined) {
    this.#child = child;
    this.#files = files;
    this.#signal = signal;
    this.#pipes = [child.stdout, child.stderr].filter((pipe): pipe is Readable => pipe !== null);
    signal?.addEventListener("abort", this.#onAbort);
    child.on("exit", (code, number) => {
      this.#status = code ?? 128 + calls.signalNumber(number);
      this.#wake();
    });
    this.#pipes.forEach((pipe, index) => {
      this.#open += 1;
      pipe.on("data", (data: Buffer) => {
        this.#queue.push({ stream: index === 0 ? "stdout" : "stderr", data });
        if (this.#queue.length >= QUEUE) {
          this.#pipes.forEach((pipe) => pipe.pause());
        }
        this.#wake();
      });
      pipe.on("close", () => {
        this.#open -= 1;
        this.#wake();
      });
    });
  }

  /** Starts it. */
  static async start(
    program: string,
    words: readonly string[],
    options: { input?: Input | undefined; command?: Exec | undefined; signal?: AbortSignal | undefined } = {},
  ): Promise<Process> {
    const { input, command, signal } = options;
    signal?.throwIfAborted();
    const files = [openUnnamed()];
    let all = [...words];
    if (command !== undefined && command.variables !== "") {
      all.splice(2, 0, `--env-file=/proc/self/fd/${FIRST + files.length}`);
      files.push(openUnnamed(Buffer.from(command.variables)));
    }
    all = ["--error-file", `/proc/self/fd/${FIRST}`, ...all];
    const stdio: StdioOptions = [input === undefined ? "ignore" : "pipe", "pipe", "pipe", ...files];
    try {
      const child = spawn(program, all, {
        stdio,
        // In a session of its own: a signal of the terminal would reach it, too, and count as the first of two.
        detached: true,
      });
      await new Promise<void>((resolve, reject) => {
        child.once("spawn", resolve);
        child.once("error", (error: NodeJS.ErrnoException) => {
          const isMissing = NOT_FOUND.includes(error.code ?? "");
          reject(isMissing ? new ProgramNotFoundError(program, error) : error);
        });
      });
      watch(child);
      const started = new Process(child, files, signal);
      if (input !== undefined) {
        void started.#send(input);
      }
      return started;
    } catch (error) {
      files.forEach(closeSync);
      throw error;
    }
  }

  /** Yields the output as it comes, until it ends. */
  async *chunks(deadline: number | null = null): AsyncGenerator<Chunk> {
    for (;;) {
      this.#check(deadline);
      const chunk = this.#queue.shift();
      if (chunk !== undefined) {
        if (this.#queue.length < QUEUE / 2) {
          this.#pipes.forEach((pipe) => pipe.resume());
        }
        yield chunk;
      } else if (this.#open === 0) {
        return;
      } else {
        await this.#change(deadline);
      }
    }
  }

  /** Waits for the end. Returns the exit status. */
  async wait(deadline: number | null = null): Promise<number> {
    while (this.#status === null) {
      this.#check(deadline);
      await this.#change(deadline);
    }
    return this.#status;
  }

  /** Returns the errors that it has reported. */
  report(): Buffer {
    const buffer = Buffer.alloc(MAX_REPORT);
    const file = this.#files[0];
    return file === undefined ? buffer.subarray(0, 0) : buffer.subarray(0, readSync(file, buffer, 0, MAX_REPORT, 0));
  }

  /** Ends it if it runs, and waits for that. Returns its exit status, and the last output. */
  async end(grace: number): Promise<{ status: number; rest: Chunk[] }> {
    const rest: Chunk[] = [];
    let length = 0;
    this.#signal?.removeEventListener("abort", this.#onAbort);
    this.#signal = undefined;
    this.#failure = null;
    this.#isEnding = true;
    const steps: [NodeJS.Signals, number][] = [
      ["SIGTERM", grace],
      ["SIGTERM", LAST_GRACE],
      ["SIGKILL", LAST_GRACE],
    ];
    for (const [name, time] of steps) {
      if (this.#status !== null) {
        break;
      }
      this.#kill(name);
      const deadline = performance.now() + time;
      try {
        for await (const chunk of this.chunks(deadline)) {
          // What waits for a reader must not wait for ever; only a reply is of use here.
          length += chunk.data.length;
          if (length <= calls.MAX_REPLY) {
            rest.push(chunk);
          }
        }
        await this.wait(deadline);
      } catch (error) {
        if (!(error instanceof DeadlinePassed)) {
          throw error;
        }
      }
      this.#child.stdin?.end();
    }
    return { status: await this.wait(), rest };
  }

  #kill(name: NodeJS.Signals): void {
    const { pid } = this.#child;
    if (name !== "SIGKILL" || pid === undefined) {
      this.#child.kill(name);
      return;
    }
    try {
      // What it has started holds its pipes, too.
      process.kill(-pid, name);
    } catch {
      // It has ended by now.
    }
  }

  /** Gives back its descriptors. It must have ended. */
  close(): void {
    this.#signal?.removeEventListener("abort", this.#onAbort);
    this.#child.stdin?.destroy();
    this.#pipes.forEach((pipe) => pipe.destroy());
    this.#files.splice(0).forEach(closeSync);
  }

  #check(deadline: number | null): void {
    this.#signal?.throwIfAborted();
    if (this.#failure !== null) {
      throw this.#failure;
    }
    if (deadline !== null && performance.now() >= deadline) {
      throw new DeadlinePassed();
    }
  }

  /** Waits until something has happened, or the deadline has come. */
  async #change(deadline: number | null): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
      if (deadline !== null) {
        timer = setTimeout(resolve, Math.max(0, deadline - performance.now()) + 1);
      }
    });
    clearTimeout(timer);
  }

  /** Writes the input. */
  async #send(input: Input): Promise<void> {
    const pipe = this.#child.stdin;
    if (pipe === null) {
      return;
    }
    let isOpen = true;
    // It reads no more. Its exit status says whether that is an error.
    pipe.on("error", () => (isOpen = false));
    pipe.on("close", () => (isOpen = false));
    const pieces = typeof input === "string" || input instanceof Uint8Array ? [input] : input;
    try {
      for await (const piece of pieces) {
        // Input that was cut short must not look like a whole one: the pipe stays open then.
        if (!isOpen || this.#isEnding) {
          return;
        }
        if (!pipe.write(piece)) {
          await new Promise<void>((resolve) => {
            pipe.once("drain", resolve);
            pipe.once("close", resolve);
          });
        }
      }
      if (!this.#isEnding) {
        pipe.end();
      }
    } catch (error) {
      // That of the iterable.
      if (!this.#isEnding) {
        this.#failure = error;
        this.#wake();
      }
    }
  }
}

/** Makes the call that takes back what another one has done. */
export type Undo<T> = (made: T) => Call<unknown> | null;

/** Runs the command, once its version is known to be new enough. */
export class Runner {
  readonly program: string;
  #isChecked = false;

  constructor(program: string) {
    this.program = program;
  }

  /**
   * Runs a call. If it is aborted, the command is ended; if it was too late for that, `undo` returns the call that takes it
   * back.
   */
  async run<T>(call: Call<T>, signal?: AbortSignal, undo?: Undo<T>): Promise<T> {
    await this.check(signal);
    return this.#run(call, signal, undo);
  }

  /** Checks that the command is there, and new enough. */
  async check(signal?: AbortSignal): Promise<void> {
    if (this.#isChecked) {
      return;
    }
    let version: { client?: unknown };
    try {
      version = await this.#run(calls.version(), signal);
    } catch (error) {
      throw error instanceof UnexpectedReplyError ? new ProgramTooOldError(this.program, null, NEEDED) : error;
    }
    const found = typeof version.client === "string" ? version.client : null;
    if (found === null || !isAtLeast(found, NEEDED)) {
      throw new ProgramTooOldError(this.program, found, NEEDED);
    }
    this.#isChecked = true;
  }

  async #run<T>(call: Call<T>, signal?: AbortSignal, undo?: Undo<T>): Promise<T> {
    const { input, command } = call;
    const started = await Process.start(this.program, call.words, { input, command, signal });
    const kept: Chunk[] = [];
    let status: number;
    let report: Buffer;
    try {
      let length = 0;
      for await (const chunk of started.chunks()) {
        length += chunk.data.length;
        if (length > call.maxReply + MAX_ERRORS) {
          throw new OutputTooLargeError(call.what, call.maxReply);
        }
        kept.push(chunk);
      }
      status = await started.wait();
      report = started.report();
    } catch (error) {
      const { rest } = await started.end(calls.JOB_GRACE);
      // One that was ended after it made something prints that as well.
      await this.#takeBack(call, joined("stdout", [...kept, ...rest]), undo, error);
      throw error;
    } finally {
      started.close();
    }
    const output = joined("stdout", kept);
    try {
      return replyOf(call, status, output, joined("stderr", kept), report);
    } catch (error) {
      await this.#takeBack(call, output, undo, error);
      throw error;
    }
  }

  /** Takes back what a run has done that its caller does not get. */
  async #takeBack<T>(call: Call<T>, output: Buffer, undo: Undo<T> | undefined, first: unknown): Promise<void> {
    if (undo === undefined || output.length === 0) {
      return;
    }
    let back: Call<unknown> | null;
    try {
      back = undo(call.parse(output));
    } catch (error) {
      if (error instanceof BangerError) {
        return;
      }
      throw error;
    }
    if (back !== null) {
      await this.undo(back, first);
    }
  }

  /** Runs a call after an error, which stays the one that counts. */
  async undo(call: Call<unknown>, first: unknown): Promise<void> {
    try {
      await this.#run(call);
    } catch (second) {
      // One that is gone is deleted already.
      if (!(second instanceof NoSuchVMError) && first instanceof Error && first.cause === undefined) {
        Reflect.set(first, "cause", second);
      }
    }
  }

  /** Runs a command in a sandbox. Returns its end and its output. */
  async exec(
    command: Exec,
    options: {
      input?: Input | undefined;
      time_limit?: number | undefined;
      max_output: number;
      signal?: AbortSignal | undefined;
    },
  ): Promise<ExecResult> {
    const { input, time_limit, max_output, signal } = options;
    await this.check(signal);
    const started = await Process.start(this.program, command.words, { input, command, signal });
    const deadline = time_limit === undefined ? null : performance.now() + time_limit * 1000;
    const kept: Chunk[] = [];
    const lengths = { stdout: 0, stderr: 0 };
    const soFar = (status: number): ExecResult => {
      const of = (stream: Chunk["stream"]): Buffer => joined(stream, kept).subarray(0, max_output);
      return new ExecResult(command.command, status, of("stdout"), of("stderr"));
    };
    try {
      for await (const chunk of started.chunks(deadline)) {
        kept.push(chunk);
        lengths[chunk.stream] += chunk.data.length;
        if (lengths[chunk.stream] > max_output) {
          const what = `${chunk.stream} of ${command.command[0]}`;
          throw new OutputTooLargeError(what, max_output, soFar(141));
        }
      }
      const status = await started.wait(deadline);
      const error = failureOf(status, started.report());
      if (error !== null) {
        throw error;
      }
      return soFar(status);
    } catch (error) {
      const { status } = await started.end(calls.EXEC_GRACE);
      throw error instanceof DeadlinePassed ? new TimeLimitError(soFar(status), time_limit ?? 0) : error;
    } finally {
      started.close();
    }
  }

  /** Runs a command in a sandbox, and yields its output as it comes. Returns its exit status. */
  async *stream(
    command: Exec,
    options: { input?: Input | undefined; time_limit?: number | undefined; signal?: AbortSignal | undefined },
  ): AsyncGenerator<Chunk, number> {
    const { input, time_limit, signal } = options;
    await this.check(signal);
    const started = await Process.start(this.program, command.words, { input, command, signal });
    const deadline = time_limit === undefined ? null : performance.now() + time_limit * 1000;
    let isOver = false;
    try {
      yield* started.chunks(deadline);
      const status = await started.wait(deadline);
      isOver = true;
      const error = failureOf(status, started.report());
      if (error !== null) {
        throw error;
      }
      return status;
    } catch (error) {
      if (!(error instanceof DeadlinePassed)) {
        throw error;
      }
      const { status } = await started.end(calls.EXEC_GRACE);
      const result = new ExecResult(command.command, status, Buffer.alloc(0), Buffer.alloc(0));
      throw new TimeLimitError(result, time_limit ?? 0);
    } finally {
      // The reader may have left the loop.
      if (!isOver) {
        await started.end(calls.EXEC_GRACE);
      }
      started.close();
    }
  }

  /** Yields the lines that a run prints. */
  async *lines(words: readonly string[], maxLine: number, signal?: AbortSignal): AsyncGenerator<string> {
    await this.check(signal);
    const started = await Process.start(this.program, words, { signal });
    let rest = "";
    let errors = Buffer.alloc(0);
    const decoder = new TextDecoder();
    try {
      for await (const chunk of started.chunks()) {
        if (chunk.stream === "stderr") {
          errors = Buffer.concat([errors, chunk.data]).subarray(-MAX_ERRORS);
          continue;
        }
        const lines = (rest + decoder.decode(chunk.data, { stream: true })).split("\n");
        rest = lines.pop() ?? "";
        if (rest.length > maxLine) {
          throw new UnexpectedReplyError(`banger printed a line of more than ${maxLine} characters.`);
        }
        yield* lines;
      }
      const status = await started.wait();
      replyOf(calls.nothing(words), status, Buffer.alloc(0), errors, started.report());
    } finally {
      await started.end(calls.EXEC_GRACE);
      started.close();
    }
  }
}

/** Returns the reply of a run that has ended, or throws its error. */
function replyOf<T>(call: Call<T>, status: number, output: Buffer, errors: Buffer, report: Buffer): T {
  if (call.statuses.includes(status) && (status === 0 || report.length === 0)) {
    return call.parse(output);
  }
  const message = `banger ended with exit status ${status}, and reported no error.`;
  throw errorOf(report) ?? new UnexpectedReplyError(message, errors);
}

/** Returns the error with which banger ended, if not the command in the sandbox has this exit status. */
function failureOf(status: number, report: Buffer): BangerError | null {
  return status === 0 ? null : endingError(report);
}

function joined(stream: Chunk["stream"], chunks: readonly Chunk[]): Buffer {
  return Buffer.concat(chunks.filter((chunk) => chunk.stream === stream).map((chunk) => chunk.data));
}

function isAtLeast(version: string, needed: string): boolean {
  const numbers = (text: string): number[] => (text.split(/[-+]/)[0] ?? "").split(".").map(Number);
  const [found, wanted] = [numbers(version), numbers(needed)];
  const differing = wanted.findIndex((number, index) => found[index] !== number);
  return differing === -1 || (found[differing] ?? Number.NaN) > (wanted[differing] ?? 0);
}

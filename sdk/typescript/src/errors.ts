/**
 * Errors of this package, and those that banger reports to it.
 *
 * @module
 */

import { BangerError } from "./base.js";
import { BY_CODE } from "./codes.js";
import type { ExecResult } from "./results.js";

/** How much of what a program wrote to standard error is quoted, in characters. */
const QUOTED = 2000;

/** The command `banger` is not installed, or cannot be run. */
export class ProgramNotFoundError extends BangerError {
  override name = "ProgramNotFoundError";

  constructor(program: string, cause: NodeJS.ErrnoException) {
    super({
      code: "sdk.program-not-found",
      message: `cannot run ${program}.`,
      causes: [cause.code === "ENOENT" ? "it does not exist." : `${cause.message}.`],
      remedy: "install the package `banger`, or give the path of the command: `new Banger({ program: PATH })`.",
    });
  }
}

/** The command `banger` is older than this package needs. */
export class ProgramTooOldError extends BangerError {
  override name = "ProgramTooOldError";

  constructor(program: string, found: string | null, needed: string) {
    const version = found === null ? "a version that does not tell its number" : `version ${found}`;
    super({
      code: "sdk.program-too-old",
      message: `${program} is ${version}, and this package needs ${needed} or newer.`,
      remedy: "upgrade the package `banger`.",
    });
  }
}

/** The command `banger` ended, or printed something, that this package does not know. */
export class UnexpectedReplyError extends BangerError {
  override name = "UnexpectedReplyError";

  constructor(message: string, written: Buffer | string = "") {
    const text = written.toString().trim().slice(-QUOTED);
    super({ code: "sdk.unexpected-reply", message, causes: text === "" ? [] : [text] });
  }
}

/** What was to be read in a sandbox is a directory, or something else that is no file. */
export class NotAFileError extends BangerError {
  override name = "NotAFileError";

  constructor(path: string) {
    super({
      code: "sdk.not-a-file",
      message: `cannot read ${path}: it is not a regular file.`,
      remedy: "`files.list` lists a directory, and `files.download` copies it.",
    });
  }
}

/** A command in a sandbox that was to succeed has another exit status than 0. */
export class CommandFailedError extends BangerError {
  override name = "CommandFailedError";
  /** What the command did. */
  readonly result: ExecResult;

  constructor(result: ExecResult) {
    const text = result.stderr.trim().slice(-QUOTED);
    super({
      code: "sdk.command-failed",
      message: `${result.command[0]} ended with exit status ${result.exit_status}.`,
      causes: text === "" ? [] : [text],
    });
    this.result = result;
  }
}

/** A command in a sandbox ran longer than its time limit, and was ended. */
export class TimeLimitError extends BangerError {
  override name = "TimeLimitError";
  /** What it had written until then. */
  readonly result: ExecResult;

  constructor(result: ExecResult, seconds: number) {
    super({
      code: "sdk.time-limit",
      message: `${result.command[0]} ran longer than ${seconds} s, and was ended.`,
    });
    this.result = result;
  }
}

/** There was more output than the limit, and what wrote it was ended. */
export class OutputTooLargeError extends BangerError {
  override name = "OutputTooLargeError";
  /** The beginning of what a command wrote; null if it was no command in a sandbox. */
  readonly result: ExecResult | null;

  constructor(what: string, limit: number, result: ExecResult | null = null) {
    super({
      code: "sdk.output-too-large",
      message: `${what} has more than ${limit} bytes.`,
      remedy:
        result === null
          ? "raise the limit."
          : "raise the limit, or read the output as it comes with `stream`.",
    });
    this.result = result;
  }
}

/** Returns the error in the file of `--error-file`: the one that ended the command, else the first. */
export function errorOf(report: Buffer): BangerError | null {
  const found: { isLast: boolean; error: BangerError }[] = [];
  for (const line of report.toString("utf8").split("\n").filter((line) => line !== "")) {
    let row: unknown;
    try {
      row = JSON.parse(line);
    } catch {
      row = null;
    }
    if (!isReported(row)) {
      return new UnexpectedReplyError("banger reported an error that is no JSON object with its keys.", line);
    }
    const known = BY_CODE.get(row.code) ?? BangerError;
    found.push({ isLast: row.about === null, error: new known(row) });
  }
  const last = found.filter(({ isLast }) => isLast).pop() ?? found[0];
  return last?.error ?? null;
}

/** Returns the error that ended a command in a sandbox, if banger failed and not the command. */
export function endingError(report: Buffer): BangerError | null {
  const isEnding = (line: string): boolean => {
    try {
      return (JSON.parse(line) as { about?: unknown }).about === null;
    } catch {
      return false;
    }
  };
  const ending = report.toString("utf8").split("\n").filter(isEnding).pop();
  return ending === undefined ? null : errorOf(Buffer.from(ending));
}

interface Reported {
  code: string;
  message: string;
  causes: string[];
  remedy: string | null;
  about: string | null;
}

function isReported(row: unknown): row is Reported {
  const keys = ["code", "message", "causes", "remedy", "about"];
  return typeof row === "object" && row !== null && keys.every((key) => key in row);
}

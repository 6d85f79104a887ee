/**
 * Sandboxes with a kernel of their own, by the command `banger`.
 *
 * Errors are subclasses of `BangerError`, one for each code that banger reports.
 *
 * @module
 */

export { BangerError } from "./base.js";
export type { ErrorDetails } from "./base.js";
export type { CommandOptions, CreateOptions, Size } from "./calls.js";
export { Banger, CommandStream, Egress, Files, Ports, Sandbox, Workspace } from "./client.js";
export type { CallOptions, ExecOptions, StreamOptions } from "./client.js";
export * from "./codes.js";
export {
  CommandFailedError,
  NotAFileError,
  OutputTooLargeError,
  ProgramNotFoundError,
  ProgramTooOldError,
  TimeLimitError,
  UnexpectedReplyError,
} from "./errors.js";
export type { Input } from "./process.js";
export { ExecResult } from "./results.js";
export type { Chunk } from "./results.js";
export type * as types from "./types.js";

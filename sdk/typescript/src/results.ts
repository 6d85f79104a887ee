/**
 * What a command in a sandbox did.
 *
 * @module
 */

/** The end of a command, and its output. */
export class ExecResult {
  /** The command and its arguments. */
  readonly command: readonly string[];
  /** Its exit status; 128 plus the number of the signal that ended it. */
  readonly exit_status: number;
  /** What it wrote to standard output. */
  readonly stdout_bytes: Buffer;
  /** What it wrote to standard error. */
  readonly stderr_bytes: Buffer;

  constructor(command: readonly string[], exit_status: number, stdout: Buffer, stderr: Buffer) {
    this.command = command;
    this.exit_status = exit_status;
    this.stdout_bytes = stdout;
    this.stderr_bytes = stderr;
  }

  /** Standard output as text. Bytes that are not UTF-8 are replaced. */
  get stdout(): string {
    return this.stdout_bytes.toString("utf8");
  }

  /** Standard error as text. Bytes that are not UTF-8 are replaced. */
  get stderr(): string {
    return this.stderr_bytes.toString("utf8");
  }
}

/** A part of the output of a command, as it arrives. */
export interface Chunk {
  /** Where the command wrote it. */
  stream: "stdout" | "stderr";
  /** The bytes. A character can be cut in two. */
  data: Buffer;
}

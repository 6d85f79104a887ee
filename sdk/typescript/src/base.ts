/**
 * The base of all errors.
 *
 * @module
 */

/** What an error says. */
export interface ErrorDetails {
  /** What happened, for programs: the name of the error on the bus, or a short code. */
  code: string;
  /** What happened, as a sentence. */
  message: string;
  /** Why, the nearest cause first. */
  causes?: readonly string[];
  /** What to do about it; null if the message says everything. */
  remedy?: string | null;
}

/** banger, or this package, cannot do what was asked. */
export class BangerError extends Error {
  override name = "BangerError";
  /** What happened, for programs: the name of the error on the bus, or a short code. */
  readonly code: string;
  /** Why, the nearest cause first. */
  readonly causes: readonly string[];
  /** What to do about it; null if the message says everything. */
  readonly remedy: string | null;

  constructor({ code, message, causes = [], remedy = null }: ErrorDetails) {
    super(message);
    this.code = code;
    this.causes = causes;
    this.remedy = remedy;
  }

  /** Returns the message, the causes and the remedy, one on each line. */
  override toString(): string {
    const lines = [`${this.name}: ${this.message}`, ...this.causes.map((cause) => `  because: ${cause}`)];
    return [...lines, ...(this.remedy === null ? [] : [`hint: ${this.remedy}`])].join("\n");
  }
}

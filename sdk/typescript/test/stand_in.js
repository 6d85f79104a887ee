// A program that stands in for banger, and a plan for it.

import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const PROGRAM = fileURLToPath(new URL("../../tests/stand_in.py", import.meta.url));
export const ID = "0123456789abcdef0123456789abcdef";
export const SANDBOX = { id: ID, name: "web", state: "running" };
/** How long something that has to happen may take, in milliseconds. */
const PATIENCE = 120_000;

export function error(code, about = null) {
  return { code, message: "no.", causes: ["so."], remedy: "`try` again.", about };
}

/** Does what a plan says for each command line, until the test ends. */
export class StandIn {
  constructor(test, ...plan) {
    this.path = mkdtempSync(join(tmpdir(), "stand-in-"));
    process.env["STAND_IN"] = this.path;
    const show = { when: ["vm", "show"], stdout: JSON.stringify(SANDBOX) };
    const create = { when: ["vm", "create"], stdout: JSON.stringify(SANDBOX) };
    writeFileSync(join(this.path, "plan.json"), JSON.stringify([...plan, show, create]));
    test.after(() => rmSync(this.path, { recursive: true }));
  }

  /** Returns the calls, without those for the version. */
  calls() {
    const calls = this.#lines("calls.jsonl").map((line) => JSON.parse(line));
    return calls.filter((call) => call.arguments[0] !== "version");
  }

  /** Returns the arguments of the last call. */
  arguments() {
    return this.calls().at(-1).arguments;
  }

  signals() {
    return this.#lines("signals");
  }

  /** Waits until a call that waits for signals has begun. */
  async started() {
    const end = Date.now() + PATIENCE;
    while (!existsSync(join(this.path, "started"))) {
      if (Date.now() > end) {
        throw new Error("nothing has started");
      }
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }

  /** Waits until no call runs. */
  async ended() {
    const end = Date.now() + PATIENCE;
    while (this.isRunning()) {
      if (Date.now() > end) {
        throw new Error("a call does not end");
      }
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }

  /** Returns whether any of the calls still runs. */
  isRunning() {
    return this.calls().some((call) => existsSync(`/proc/${call.pid}/stat`));
  }

  #lines(name) {
    const file = join(this.path, name);
    return existsSync(file) ? readFileSync(file, "utf8").split("\n").filter((line) => line !== "") : [];
  }
}

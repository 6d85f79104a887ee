// What the client runs, and what it makes of the output.

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { existsSync, readdirSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, test } from "node:test";

import * as banger from "../dist/index.js";
import { Banger, Sandbox } from "../dist/index.js";
import { pack, unpack } from "../dist/archive.js";
import * as calls from "../dist/calls.js";
import { ID, PROGRAM, SANDBOX, StandIn, error } from "./stand_in.js";

const sandbox = () => new Banger({ program: PROGRAM }).get("web");

async function collect(chunks) {
  const all = [];
  for await (const chunk of chunks) {
    all.push(chunk);
  }
  return all;
}

describe("arguments", () => {
  test("options of a creation are those of the command", async (t) => {
    const standIn = new StandIn(t);
    const made = await Sandbox.create({
      client: new Banger({ program: PROGRAM }),
      name: "web",
      image: "alpine:3",
      vcpus: 2,
      memory: 2 ** 30,
      root_size: "20GiB",
      nat: false,
      egress: ["packages", "github.com:443"],
      publish: [80, "8080:81"],
      labels: { team: "a b", x: "" },
      autostart: true,
      start: false,
    });
    assert.deepEqual([made.id, made.name], [ID, "web"]);
    const expect =
      "vm create -q --name=web --image=alpine:3 --vcpu=2 --memory=1073741824B --root-size=20GiB --egress=packages " +
      "--egress=github.com:443 --publish=80 --publish=8080:81";
    assert.deepEqual(standIn.arguments(), [
      ...expect.split(" "),
      "--label=team=a b",
      "--label=x=",
      "--no-start",
      "--no-nat",
      "--autostart",
      "--json",
      "--",
    ]);
  });

  test("an empty policy is nothing", async (t) => {
    const standIn = new StandIn(t);
    const client = new Banger({ program: PROGRAM });
    await client.create({ egress: [] });
    assert(standIn.arguments().includes("--egress=none"));
    await client.create();
    assert.deepEqual(standIn.arguments(), ["vm", "create", "-q", "--json", "--"]);
  });

  test("a text is no list", async (t) => {
    new StandIn(t);
    const client = new Banger({ program: PROGRAM });
    const web = await sandbox();
    for (const call of [
      () => client.create({ publish: "8080:80" }),
      () => client.create({ egress: "github.com" }),
      () => client.list({ filters: "state=running" }),
      () => web.fork({ names: "a" }),
      () => web.exec(["x"], { share: "ssh-agent" }),
      async () => web.workspace.prepare("/r", { include: "src" }),
    ]) {
      await assert.rejects(call, TypeError);
    }
  });

  test("the end of a path of the host keeps its meaning", () => {
    const here = process.cwd();
    for (const [path, expect] of [
      [".", `${here}/.`],
      ["..", `${dirname(here)}/.`],
      ["src/.", `${here}/src/.`],
      ["src/..", `${here}/.`],
      ["src/", `${here}/src/`],
      ["src", `${here}/src`],
      ["/", "/"],
      ["a.", `${here}/a.`],
    ]) {
      assert.equal(calls.hostPath(path), expect);
    }
  });

  test("a command is passed word by word", async (t) => {
    const words = ["printf", "a b", "", "$HOME", "--", "-x", "new\nline", "*"];
    const standIn = new StandIn(t);
    const web = await sandbox();
    await web.exec(words, { user: "dev", workdir: "/srv", share: ["ssh-agent"], proxy: false });
    const options = ["--user=dev", "--workdir=/srv", "--share=ssh-agent", "--no-proxy"];
    const expect = ["vm", "exec", "--no-tty", "--no-stdin", ...options, "--", ID, ...words];
    assert.deepEqual(standIn.arguments(), expect);
    await web.exec(["cat"], { input: "x" });
    assert.deepEqual(standIn.arguments(), ["vm", "exec", "--no-tty", "--", ID, "cat"]);
    await assert.rejects(web.exec([]), TypeError);
    await assert.rejects(web.exec("make test"), TypeError);
  });

  test("variables are on no command line", async (t) => {
    const standIn = new StandIn(t);
    const web = await sandbox();
    await web.exec(["env"], { env: { TOKEN: " s3cret ", LD_LIBRARY_PATH: "two\r\nlines", PATH: "/x\n" } });
    const call = standIn.calls().at(-1);
    assert.equal(call.variables, "TOKEN= s3cret \0LD_LIBRARY_PATH=two\r\nlines\0PATH=/x\n\0");
    // What banger itself does, is for its user to say.
    assert.equal(call.environment.PATH, process.env.PATH);
    assert(!Object.values(call.environment).includes("two\r\nlines"));
    assert(!call.arguments.join(" ").includes("s3cret"));
    for (const [name, value] of [["", "x"], ["a=b", "x"], ["a b", "x"], ["#a", "x"], ["a", "\0"]]) {
      await assert.rejects(web.exec(["env"], { env: { [name]: value } }), TypeError);
    }
  });

  test("each method runs its verb", async (t) => {
    const outcome = JSON.stringify([{ reference: "x", id: ID, done: "stopped", changed: true, error: null }]);
    const verbs = ["start", "stop", "restart", "pause", "unpause", "suspend", "resume", "fork"];
    const rows = ["vm files", "vm ports", "vm publish", "vm commands", "vm snapshot list"];
    const standIn = new StandIn(
      t,
      ...verbs.map((verb) => ({ when: ["vm", verb], stdout: outcome })),
      ...rows.map((verb) => ({ when: verb.split(" "), stdout: "[]" })),
      { when: ["vm", "stats"], stdout: "[{}]" },
      { when: ["vm", "rename"], stdout: JSON.stringify(SANDBOX) },
    );
    const web = await sandbox();
    const acts = [
      [() => web.start({ wait: "boot" }), `vm start -q --wait=boot --json -- ${ID}`],
      [() => web.stop({ timeout: 3 }), `vm stop -q --timeout=3 --json -- ${ID}`],
      [() => web.stop({ force: true }), `vm stop -q --force --json -- ${ID}`],
      [() => web.restart(), `vm restart -q --json -- ${ID}`],
      [() => web.pause(), `vm pause --json -- ${ID}`],
      [() => web.unpause(), `vm unpause --json -- ${ID}`],
      [() => web.suspend(), `vm suspend -q --json -- ${ID}`],
      [() => web.resume(), `vm resume -q --json -- ${ID}`],
      [() => web.rename("db"), `vm rename --json -- ${ID} db`],
      [() => web.delete(), `vm delete -q --force --json -- ${ID}`],
      [() => web.snapshot("-x"), `vm snapshot create -q --json -- ${ID} -x`],
      [() => web.snapshots(), `vm snapshot list --json -- ${ID}`],
      [() => web.deleteSnapshot("x"), `vm snapshot delete -- ${ID} x`],
      [() => web.stats(), `vm stats --json -- ${ID}`],
      [() => web.logs({ tail: 5, exec: 2 }), `vm logs --raw --tail=5 --exec=2 -- ${ID}`],
      [() => web.commands(), `vm commands --json -- ${ID}`],
      [() => web.files.list("/srv", { recursive: true }), `vm files --recursive --json -- ${ID} /srv`],
      [() => web.files.upload("/a/.", "/b/", { chown: "dev" }), `vm cp -q --chown=dev -- /a/. ${ID}:/b/`],
      [() => web.files.upload("web:x", "/b"), `vm cp -q -- ${process.cwd()}/web:x ${ID}:/b`],
      [() => web.files.download("c", "/"), `vm cp -q -- ${ID}:c /`],
      [() => web.ports.list(), `vm ports --json -- ${ID}`],
      [() => web.ports.published(), `vm publish --json -- ${ID}`],
      [() => web.ports.publish(80, "81:82"), `vm publish --json -- ${ID} 80 81:82`],
      [() => web.ports.unpublish(8080), `vm unpublish -- ${ID} 8080`],
      [() => web.egress.show(), `vm egress --json -- ${ID}`],
      [() => web.egress.allow("a", "b:1"), `vm egress allow -- ${ID} a b:1`],
      [() => web.egress.deny("a"), `vm egress deny -- ${ID} a`],
      [
        () => web.workspace.prepare("/r", { branch: "x", include_untracked: true }),
        `vm workspace prepare -q --branch=x --include-untracked --json -- ${ID} /r`,
      ],
      [() => web.workspace.export({ apply: true }), `vm workspace export -q --apply --json -- ${ID}`],
      [() => web.workspace.fetch({ branch: "x" }), `vm workspace fetch -q --branch=x --json -- ${ID}`],
    ];
    for (const [act, expect] of acts) {
      await act();
      assert.deepEqual(standIn.arguments(), expect.split(" "));
    }
    const forks = await web.fork({ count: 2, names: ["a", "b"], from_snapshot: "s" });
    assert.deepEqual(forks.map((fork) => fork.id), [ID]);
    const fork = standIn.calls().find((call) => call.arguments[1] === "fork");
    const expect = `vm fork -q --count=2 --name=a --name=b --from-snapshot=s --json -- ${ID}`;
    assert.deepEqual(fork.arguments, expect.split(" "));
  });

  test("a sandbox is deleted after its use, and when it has no workspace", async (t) => {
    let standIn = new StandIn(t);
    const options = { client: new Banger({ program: PROGRAM }) };
    const failing = Sandbox.using(options, async () => {
      throw new RangeError();
    });
    await assert.rejects(failing, RangeError);
    assert.deepEqual(standIn.arguments().slice(0, 2), ["vm", "delete"]);
    standIn = new StandIn(t, { when: ["vm", "workspace"], status: 1, errors: [error("refused")] });
    await assert.rejects(Sandbox.create({ ...options, workspace: "/r" }), banger.RefusedError);
    assert.deepEqual(standIn.arguments().slice(0, 2), ["vm", "delete"]);
  });
});

describe("errors", () => {
  test("each code has a class", async (t) => {
    for (const [code, kind] of [
      ["dev.banger.Error.NoSuchVM", banger.NoSuchVMError],
      ["org.freedesktop.DBus.Error.AccessDenied", banger.AccessDeniedError],
      ["guest.not-found", banger.GuestNotFoundError],
      ["com.example.Odd", banger.BangerError],
    ]) {
      new StandIn(t, { when: ["vm", "show"], status: 1, errors: [error(code)] });
      const found = await sandbox().catch((error) => error);
      assert.equal(found.constructor, kind);
      assert.deepEqual([found.code, found.message, found.remedy], [code, "no.", "`try` again."]);
      assert.equal(String(found), `${kind.name}: no.\n  because: so.\nhint: \`try\` again.`);
    }
  });

  test("the error that ends the command counts", async (t) => {
    const errors = [error("dev.banger.Error.Busy", "a"), error("io"), error("guest.other", "b")];
    new StandIn(t, { when: ["vm", "show"], status: 1, errors });
    await assert.rejects(sandbox(), banger.IoError);
    new StandIn(t, { when: ["vm", "show"], status: 1, errors: [errors[0], errors[2]] });
    await assert.rejects(sandbox(), banger.BusyError);
  });

  test("replies that are none are errors", async (t) => {
    for (const step of [
      { stdout: "no" },
      { status: 1, stderr: "it broke" },
      { status: 1, errors: ["no object"] },
      { status: 1, errors: [{ code: "io" }] },
    ]) {
      new StandIn(t, { when: ["vm", "show"], ...step });
      await assert.rejects(sandbox(), banger.UnexpectedReplyError);
    }
  });

  test("a missing and an old program are told apart", async (t) => {
    for (const program of ["/nonexistent/banger", "/etc/passwd"]) {
      await assert.rejects(new Banger({ program }).version(), banger.ProgramNotFoundError);
    }
    for (const step of [{ stdout: '{"client": "0.0.9"}' }, { stdout: '{"client": 1}' }, { status: 2 }]) {
      new StandIn(t, { when: ["version"], ...step });
      await assert.rejects(sandbox(), banger.ProgramTooOldError);
    }
    for (const client of ["0.1.0", "0.1.1", "0.10.0-rc.1", "1.0.0"]) {
      new StandIn(t, { when: ["version"], stdout: JSON.stringify({ client }) });
      assert.equal((await sandbox()).id, ID);
    }
  });

  test("a reply with a check that fails is a reply", async (t) => {
    new StandIn(t, { when: ["doctor"], status: 1, stdout: '[{"check": "kvm"}]' });
    assert.equal((await new Banger({ program: PROGRAM }).doctor())[0].check, "kvm");
  });

  test("forks that did not all start are deleted", async (t) => {
    const stdout = JSON.stringify([{ id: ID }, { id: "f".repeat(32) }]);
    const standIn = new StandIn(t, { when: ["vm", "fork"], stdout, status: 1, errors: [error("guest.other", "b")] });
    await assert.rejects((await sandbox()).fork({ count: 2 }), banger.GuestOtherError);
    const expect = ["vm", "delete", "-q", "--force", "--json", "--", ID, "f".repeat(32)];
    assert.deepEqual(standIn.arguments(), expect);
  });
});

describe("commands", () => {
  test("the status and the output come back", async (t) => {
    new StandIn(t, { when: ["vm", "exec"], hex: "68690aff", stderr: "oh\n", status: 3 });
    const web = await sandbox();
    const result = await web.exec(["make", "test"]);
    assert.deepEqual([result.exit_status, result.stdout, result.stderr], [3, "hi\n\ufffd", "oh\n"]);
    const failed = await web.exec(["make"], { check: true }).catch((error) => error);
    assert(failed instanceof banger.CommandFailedError);
    assert.deepEqual([failed.message, failed.causes], ["make ended with exit status 3.", ["oh"]]);
  });

  test("a failure of banger is told from one of the command", async (t) => {
    const line = JSON.stringify(error("dev.banger.Error.NoSuchVM"));
    new StandIn(t, { when: ["vm", "exec"], status: 125, stderr: line });
    assert.equal((await (await sandbox()).exec(["x"])).exit_status, 125);
    new StandIn(t, { when: ["vm", "exec"], status: 125, errors: [error("io", "a connection")] });
    assert.equal((await (await sandbox()).exec(["x"])).exit_status, 125);
    new StandIn(t, { when: ["vm", "exec"], status: 127, errors: [error("guest.not-found")] });
    const web = await sandbox();
    await assert.rejects(web.exec(["x"]), banger.GuestNotFoundError);
    await assert.rejects(collect(web.stream(["x"])), banger.GuestNotFoundError);
  });

  test("input of every kind arrives", async (t) => {
    new StandIn(t, { when: ["vm", "exec"], cat: true });
    const web = await sandbox();
    const much = Buffer.alloc(1 << 20, "0123456789abcdef");
    async function* pieces() {
      yield Buffer.from("a");
      yield Buffer.from("b");
    }
    for (const [input, expect] of [
      [Buffer.from("bytes"), "bytes"],
      ["text \u20ac", "text \u20ac"],
      [[Buffer.from("a"), Buffer.alloc(0), Buffer.from("b")], "ab"],
      [pieces(), "ab"],
      ["", ""],
      [much, much.toString()],
    ]) {
      assert.equal((await web.exec(["cat"], { input })).stdout, expect);
    }
  });

  test("a command that reads no input is no error, and an error of the input is one", async (t) => {
    new StandIn(t, { when: ["vm", "exec"], status: 4 });
    const input = Buffer.alloc(1 << 20);
    assert.equal((await (await sandbox()).exec(["true"], { input })).exit_status, 4);
    const standIn = new StandIn(t, { when: ["vm", "exec"], cat: true });
    async function* pieces() {
      yield Buffer.from("one");
      throw new RangeError();
    }
    await assert.rejects((await sandbox()).exec(["cat"], { input: pieces() }), RangeError);
    assert(!standIn.isRunning());
    assert(!existsSync(join(standIn.path, "input-ended")), "a part of the input was taken for all of it");
  });

  test("too much output ends the command", async (t) => {
    const standIn = new StandIn(t, { when: ["vm", "exec"], much: 2 ** 30 });
    const failed = await (await sandbox()).exec(["yes"], { max_output: 1000 }).catch((error) => error);
    assert(failed instanceof banger.OutputTooLargeError, String(failed));
    assert.equal(failed.result.stdout, "x".repeat(1000));
    assert(!standIn.isRunning());
  });

  test("a time limit ends the command", async (t) => {
    const standIn = new StandIn(t, { when: ["vm", "exec"], before: "begun", signals: 1 });
    const limited = (await sandbox()).exec(["sleep", "1000"], { time_limit: 0.5 });
    await assert.rejects(limited, banger.TimeLimitError);
    assert(!standIn.isRunning());
  });

  test("a signal that aborts ends the command before the call is rejected", async (t) => {
    const standIn = new StandIn(t, { when: ["vm", "exec"], signals: 1 });
    const web = await sandbox();
    const controller = new AbortController();
    const command = web.exec(["sleep", "1000"], { signal: controller.signal });
    await standIn.started();
    controller.abort(new RangeError("enough"));
    await assert.rejects(command, RangeError);
    assert.deepEqual(standIn.signals(), ["SIGTERM"]);
    assert(!standIn.isRunning());
    await assert.rejects(web.show({ signal: controller.signal }), RangeError);
  });

  test("a command that ignores a signal gets another", async (t) => {
    const standIn = new StandIn(t, { when: ["vm", "exec"], signals: 2 });
    const web = await sandbox();
    const controller = new AbortController();
    const command = web.exec(["sleep", "1000"], { signal: controller.signal });
    await standIn.started();
    controller.abort();
    await assert.rejects(command, { name: "AbortError" });
    assert.deepEqual(standIn.signals(), ["SIGTERM", "SIGTERM"]);
    assert(!standIn.isRunning());
  });

  test("an interrupt of the terminal is one signal, and ends the program", async (t) => {
    const standIn = new StandIn(t, { when: ["vm", "exec"], signals: 1 });
    const index = new URL("../dist/index.js", import.meta.url).href;
    for (const handled of [false, true]) {
      const handler = "process.once('SIGINT', () => control.abort());";
      const program =
        `import { Banger } from ${JSON.stringify(index)}; const control = new AbortController(); ${handled ? handler : ""}` +
        `const web = await new Banger({ program: ${JSON.stringify(PROGRAM)} }).get("web");` +
        `await web.exec(["sleep"], { signal: control.signal }).catch(() => process.exit(7));`;
      const before = standIn.signals().length;
      const child = spawn(process.execPath, ["--input-type=module", "-e", program], { detached: true, stdio: "ignore" });
      const ended = new Promise((resolve) => child.once("exit", (code, signal) => resolve([code, signal])));
      await standIn.started();
      // Its group is that of a terminal's job.
      process.kill(-child.pid, "SIGINT");
      assert.deepEqual(await ended, handled ? [7, null] : [null, "SIGINT"]);
      await standIn.ended();
      assert.deepEqual(standIn.signals().slice(before), ["SIGTERM"]);
      rmSync(join(standIn.path, "started"));
    }
  });

  test("errors of a start that are not about the program are left as they are", async (t) => {
    new StandIn(t);
    const web = await sandbox();
    await assert.rejects(web.exec(["sh", "-c", "x".repeat(1 << 18)]), { code: "E2BIG" });
  });

  test("forks without an object are deleted, and the first error counts", async (t) => {
    const standIn = new StandIn(
      t,
      { when: ["vm", "fork"], stdout: JSON.stringify([{ id: ID }, { id: "f".repeat(32) }]) },
      { when: ["vm", "show", "--json", "--", "f".repeat(32)], status: 1, errors: [error("dev.banger.Error.Busy")] },
      { when: ["vm", "delete"], status: 1, errors: [error("io")] },
    );
    const failed = await (await sandbox()).fork({ count: 2 }).catch((error) => error);
    assert(failed instanceof banger.BusyError, String(failed));
    assert(failed.cause instanceof banger.IoError, String(failed.cause));
    const expect = ["vm", "delete", "-q", "--force", "--json", "--", ID, "f".repeat(32)];
    assert.deepEqual(standIn.arguments(), expect);
  });

  test("a creation that was aborted after its job is taken back", async (t) => {
    const step = { when: ["vm", "create"], signals: 1, stdout: JSON.stringify(SANDBOX), status: 143 };
    const standIn = new StandIn(t, { ...step, errors: [error("cancelled")] });
    const controller = new AbortController();
    const creation = new Banger({ program: PROGRAM }).create({ signal: controller.signal });
    await standIn.started();
    controller.abort();
    await assert.rejects(creation, { name: "AbortError" });
    assert.deepEqual(standIn.arguments(), ["vm", "delete", "-q", "--force", "--json", "--", ID]);
  });

  test("a creation that was aborted too late is taken back", async (t) => {
    const stdout = JSON.stringify(SANDBOX);
    const standIn = new StandIn(t, { when: ["vm", "create"], signals: 1, stdout });
    const controller = new AbortController();
    const creation = new Banger({ program: PROGRAM }).create({ signal: controller.signal });
    await standIn.started();
    controller.abort();
    await assert.rejects(creation, { name: "AbortError" });
    assert.deepEqual(standIn.arguments(), ["vm", "delete", "-q", "--force", "--json", "--", ID]);
  });

  test("output comes while the command runs", async (t) => {
    const standIn = new StandIn(t, {
      when: ["vm", "exec"],
      before: "begun",
      signals: 1,
      stderr: "end",
      status: 5,
    });
    const output = (await sandbox()).stream(["make"]);
    const seen = [];
    for await (const chunk of output) {
      seen.push([chunk.stream, chunk.data.toString()]);
      if (seen.length === 1) {
        assert.equal(output.exit_status, null);
        process.kill(standIn.calls().at(-1).pid, "SIGINT");
      }
    }
    assert.deepEqual(seen, [["stdout", "begun"], ["stderr", "end"]]);
    assert.equal(output.exit_status, 5);
    await assert.rejects(collect(output), TypeError);
  });

  test("leaving the loop of a stream ends the command", async (t) => {
    const standIn = new StandIn(t, { when: ["vm", "exec"], before: "begun", signals: 1 });
    for await (const _chunk of (await sandbox()).stream(["make"])) {
      break;
    }
    assert.deepEqual(standIn.signals(), ["SIGTERM"]);
    assert(!standIn.isRunning());
  });

  test("a stream has no limit of size and one of time", async (t) => {
    new StandIn(t, { when: ["vm", "exec"], much: 40 << 20 });
    let length = 0;
    for await (const chunk of (await sandbox()).stream(["yes"])) {
      length += chunk.data.length;
    }
    assert.equal(length, 40 << 20);
    new StandIn(t, { when: ["vm", "exec"], signals: 1 });
    const limited = collect((await sandbox()).stream(["sleep"], { time_limit: 0.2 }));
    await assert.rejects(limited, banger.TimeLimitError);
  });

  test("a detached command has a number", async (t) => {
    const standIn = new StandIn(t, { when: ["vm", "exec"], stdout: '{"id": 7}' });
    assert.equal(await (await sandbox()).execDetached(["serve"], { env: { PORT: "80" } }), 7);
    const call = standIn.calls().at(-1);
    assert.equal(call.variables, "PORT=80\0");
    const words = call.arguments.filter((word) => !word.includes("env-file"));
    assert.deepEqual(words, ["vm", "exec", "--detach", "--json", "--", ID, "serve"]);
  });

  test("many commands run at once", async (t) => {
    new StandIn(t, { when: ["vm", "exec"], cat: true });
    const web = await sandbox();
    const numbers = Array.from({ length: 20 }, (_, number) => String(number));
    const results = await Promise.all(numbers.map((input) => web.exec(["cat"], { input })));
    assert.deepEqual(results.map((result) => result.stdout), numbers);
  });

  test("events are objects and those of one sandbox are chosen", async (t) => {
    const lines = [ID, "x", ID].map((object, number) => JSON.stringify({ event: String(number), object }) + "\n");
    new StandIn(t, { when: ["events"], stdout: lines.join("") });
    const names = (events) => events.map((event) => event.event);
    assert.deepEqual(names(await collect(new Banger({ program: PROGRAM }).events())), ["0", "1", "2"]);
    assert.deepEqual(names(await collect((await sandbox()).events())), ["0", "2"]);
    new StandIn(t, { when: ["events"], status: 1, errors: [error("service-ended")] });
    await assert.rejects(collect((await sandbox()).events()), banger.ServiceEndedError);
    const standIn = new StandIn(t, { when: ["events"], before: '{"event": "a"}\n', signals: 1 });
    for await (const event of new Banger({ program: PROGRAM }).events()) {
      assert.equal(event.event, "a");
      break;
    }
    assert(!standIn.isRunning());
  });

  test("no descriptor is left open", async (t) => {
    new StandIn(t, { when: ["vm", "exec"], cat: true });
    const web = await sandbox();
    const run = () => web.exec(["cat"], { input: "x", env: { a: "b" } });
    await run();
    const count = () => readdirSync("/proc/self/fd").length;
    const before = count();
    for (let times = 0; times < 5; times += 1) {
      await run();
    }
    assert(count() <= before, `${before} and then ${count()}`);
  });
});

describe("files", () => {
  const tar = (script) => {
    const python = `import io, sys, tarfile\nout = io.BytesIO()\n${script}\nsys.stdout.buffer.write(out.getvalue())`;
    return spawnSync("python3", ["-c", python], { maxBuffer: 1 << 28 }).stdout;
  };
  const archive = (format, kind, name, data) =>
    tar(
      `with tarfile.open(fileobj=out, mode="w", format=tarfile.${format}) as t:\n e = tarfile.TarInfo("${name}")\n` +
        ` e.type = tarfile.${kind}\n e.size = len(b"${data}")\n t.addfile(e, io.BytesIO(b"${data}"))`,
    );

  test("a file is read from an archive", async (t) => {
    const hex = archive("PAX_FORMAT", "REGTYPE", "n".repeat(200), "hello").toString("hex");
    const standIn = new StandIn(t, { when: ["vm", "cp"], hex });
    const web = await sandbox();
    assert.equal(await web.files.readText("notes/x"), "hello");
    assert.deepEqual(standIn.arguments(), `vm cp -q --follow-link -- ${ID}:notes/x -`.split(" "));
    await assert.rejects(web.files.read("x", { max_bytes: 4 }), banger.OutputTooLargeError);
    new StandIn(t, { when: ["vm", "cp"], much: 2 ** 30 });
    await assert.rejects((await sandbox()).files.read("x", { max_bytes: 9 }), banger.OutputTooLargeError);
  });

  test("archives of every format are read, or refused", () => {
    for (const format of ["USTAR_FORMAT", "GNU_FORMAT", "PAX_FORMAT"]) {
      const name = format === "USTAR_FORMAT" ? "x" : "n".repeat(300);
      assert.equal(unpack(archive(format, "REGTYPE", name, "hello"), "x", 9).toString(), "hello");
      assert.equal(unpack(archive(format, "REGTYPE", name, ""), "x", 9).toString(), "");
      assert.throws(() => unpack(archive(format, "DIRTYPE", name, ""), "x", 9), banger.NotAFileError);
    }
    const whole = archive("PAX_FORMAT", "REGTYPE", "x", "hello");
    for (const cut of [0, 100, 512, 514]) {
      assert.throws(() => unpack(whole.subarray(0, cut), "x", 9), banger.UnexpectedReplyError);
    }
  });

  test("a file with holes is read", (t) => {
    const script = "truncate -s 1M x; for n in 1 2 3 4 5 6; do printf end | dd of=x bs=1 seek=$((n * 100000)) conv=notrunc; done";
    const made = spawnSync("sh", ["-c", `cd "$(mktemp -d)" && { ${script}; } 2>/dev/null && tar -cSf - --format=gnu x`]);
    const archive = made.stdout;
    const content = unpack(archive, "x", 1 << 20);
    assert.equal(content.length, 1 << 20);
    assert.equal(content.toString("utf8", 600_000, 600_003), "end");
    assert.equal(content.reduce((sum, byte) => sum + (byte === 0 ? 0 : 1), 0), 18);
    if (archive.length > 1 << 19) {
      t.diagnostic("this file system keeps no holes");
    }
    assert.throws(() => unpack(archive, "x", 1000), banger.OutputTooLargeError);
  });

  test("a file is written as an archive that others read", async (t) => {
    for (const [path, to] of [
      ["/srv/a/x", "/srv/a/"],
      ["x", ""],
      ["/x", "/"],
      [`~ann/${"n".repeat(200)}`, "~ann/"],
      [`${"\u20ac".repeat(40)}`, ""],
    ]) {
      const standIn = new StandIn(t, { when: ["vm", "cp"], cat: true });
      await (await sandbox()).files.write(path, "text \u20ac", { mode: 0o755, chown: "dev" });
      assert.deepEqual(standIn.arguments(), ["vm", "cp", "-q", "--chown=dev", "--", "-", `${ID}:${to}`]);
      const name = path.slice(path.lastIndexOf("/") + 1);
      const input = calls.writeFile(ID, path, "text \u20ac", { mode: 0o755 }).input;
      const python =
        "import sys, tarfile, io\nt = tarfile.open(fileobj=io.BytesIO(sys.stdin.buffer.read()))\n" +
        "print([(e.name, oct(e.mode), t.extractfile(e).read().decode()) for e in t])";
      const read = spawnSync("python3", ["-X", "utf8", "-c", python], { input });
      assert.equal(read.stdout.toString(), `[('${name}', '0o755', 'text \u20ac')]\n`);
    }
    for (const path of ["", "/", "a/", "a/..", "."]) {
      const web = await sandbox();
      assert.throws(() => web.files.write(path, ""), TypeError);
    }
    assert.equal(unpack(pack("x", Buffer.from("hello"), 0o644), "x", 9).toString(), "hello");
  });
});

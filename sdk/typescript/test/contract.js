// The client with the real command. Arguments: `agent` for a service whose sandboxes with names like `box` have the real
// agent, on this host, or `service` for the real service, whose sandboxes are in memory and have no agent; and a directory to
// which both can write.

import assert from "node:assert/strict";
import { existsSync, mkdirSync, readFileSync, statSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import * as banger from "../dist/index.js";
import { Banger, Sandbox } from "../dist/index.js";

const [mode, guest] = process.argv.slice(2);
const client = new Banger();
const names = async () => (await client.list()).map((box) => box.name);

async function fails(kind, promise) {
  const error = await promise.then(() => null, (error) => error);
  assert.equal(error?.constructor, kind, String(error));
  return error;
}

async function withAgent() {
  assert.deepEqual((await names()).sort(), ["db", "locked", "web"]);
  await Sandbox.using({ name: "box", image: "debian", labels: { team: "x y" } }, async (box) => {
    assert.deepEqual(box.properties.labels, { team: "x y" });
    assert.equal((await Sandbox.get("box")).id, box.id);
    assert.deepEqual((await Sandbox.list({ labels: { team: "x y" } })).map((one) => one.name), ["box"]);
    await commands(box);
    await files(box);
    const error = await fails(banger.NoSuchImageError, client.create({ image: "nope", pull: "never" }));
    assert(error.remedy !== null);
    await fails(banger.InteractiveAuthorizationRequiredError, (await client.get("locked")).stop());
    await fails(banger.InvalidArgumentsError, client.create({ vcpus: 0 }));
    assert.deepEqual(await box.ports.published(), []);
    assert((await box.ports.list()).every((port) => port.port > 0));
    await box.egress.allow("example.com", "packages");
    assert.equal((await box.stop()).done, "stopped");
    assert.equal((await box.show()).state, "stopped");
    assert((await box.start()).changed);
    assert((await box.logs({ tail: 1 })).includes("Started"));
  });
  await fails(banger.NoSuchVMError, client.get("box"));
  const controller = new AbortController();
  const creation = client.create({ name: "hanging", image: "debian", signal: controller.signal });
  while (!(await names()).includes("hanging")) {
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  controller.abort(new RangeError());
  await fails(RangeError, creation);
  assert(!(await names()).includes("hanging"));
}

async function commands(box) {
  const script = 'echo "$1"; echo err >&2; exit 7';
  const result = await box.exec(["sh", "-c", script, "sh", "a  b"]);
  assert.deepEqual([result.exit_status, result.stdout, result.stderr], [7, "a  b\n", "err\n"]);
  assert.equal((await box.exec(["cat"], { input: "hello" })).stdout, "hello");
  assert.equal((await box.exec(["sh", "-c", "kill -9 $$"])).exit_status, 137);
  assert.equal((await box.exec(["sh", "-c", "exit 125"])).exit_status, 125);
  const env = { BANGER_ONE: " a=b 'c' ", BANGER_TWO: "two\nlines\r\n", BANGER_THREE: "" };
  const print = 'printf "[%s][%s][%s]" "$BANGER_ONE" "$BANGER_TWO" "$BANGER_THREE"';
  assert.equal((await box.exec(["sh", "-c", print], { env })).stdout, "[ a=b 'c' ][two\nlines\r\n][]");
  assert.equal((await box.exec(["pwd"], { workdir: guest })).stdout, `${guest}\n`);
  await fails(banger.GuestNotFoundError, box.exec(["/nonexistent"]));
  await fails(banger.GuestNoDirectoryError, box.exec(["true"], { workdir: "/nonexistent" }));
  await fails(banger.CommandFailedError, box.exec(["false"], { check: true }));
  const mark = join(guest, "mark");
  const trap = `trap 'echo gone > ${mark}; exit 0' TERM; echo begun; while :; do sleep 0.05; done`;
  for await (const chunk of box.stream(["sh", "-c", trap])) {
    assert.equal(chunk.data.toString(), "begun\n");
    break;
  }
  assert.equal(readFileSync(mark, "utf8"), "gone\n");
  await fails(banger.TimeLimitError, box.exec(["sleep", "1000"], { time_limit: 1 }));
  const output = box.stream(["sh", "-c", "echo one; sleep 0.2; echo two >&2; exit 3"]);
  const seen = [];
  for await (const chunk of output) {
    seen.push([chunk.stream, chunk.data.toString()]);
  }
  assert.deepEqual([seen, output.exit_status], [[["stdout", "one\n"], ["stderr", "two\n"]], 3]);
  let running;
  for await (const chunk of box.stream(["sh", "-c", "echo $$; exec sleep 1000"])) {
    running = `/proc/${chunk.data.toString().trim()}`;
    assert(existsSync(running));
    break;
  }
  for (let times = 0; existsSync(running) && times < 1200; times += 1) {
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  assert(!existsSync(running));
  assert((await box.execDetached(["sh", "-c", "echo $BANGER_ONE"], { env: { BANGER_ONE: "1" } })) > 0);
}

async function files(box) {
  const place = join(guest, "a b");
  const bytes = Buffer.alloc(2000, "\0\xff", "latin1");
  await box.files.write(`${place}/new/x`, bytes, { mode: 0o750 });
  assert((await box.files.read(`${place}/new/x`)).equals(bytes));
  assert.equal(statSync(join(place, "new/x")).mode & 0o7777, 0o750);
  await box.files.write(`${place}/empty`, "");
  assert.equal(await box.files.readText(`${place}/empty`), "");
  const long = "n".repeat(200);
  await box.files.write(`${place}/${long}`, "long");
  symlinkSync(long, join(place, "link"));
  assert.equal(await box.files.readText(`${place}/link`), "long");
  writeFileSync(join(place, "holes"), "begin");
  truncateSync(join(place, "holes"), 1 << 20);
  const holes = await box.files.read(`${place}/holes`);
  assert.deepEqual([holes.length, holes.toString("utf8", 0, 5), holes.at(-1)], [1 << 20, "begin", 0]);
  await fails(banger.OutputTooLargeError, box.files.read(`${place}/holes`, { max_bytes: 1000 }));
  await fails(banger.GuestNotFoundError, box.files.read(`${place}/none`));
  await fails(banger.NotAFileError, box.files.read(place));
  await fails(banger.InvalidArgumentsError, box.files.list("relative"));
  const listed = Object.fromEntries((await box.files.list(place)).map((entry) => [entry.name, entry.kind]));
  assert.deepEqual(listed, { new: "directory", empty: "file", [long]: "file", link: "symlink", holes: "file" });
  assert((await box.files.list(place, { recursive: true })).some((entry) => entry.name === "new/x"));
  const host = join(guest, "host");
  mkdirSync(host);
  writeFileSync(join(host, "y"), "up");
  await box.files.upload(host, `${place}/uploaded`);
  assert.equal(await box.files.readText(`${place}/uploaded/y`), "up");
  await box.files.download(`${place}/uploaded/.`, join(host, "down"));
  assert.equal(readFileSync(join(host, "down/y"), "utf8"), "up");
}

async function withService() {
  const version = await client.version();
  assert.equal(version.client, version.service);
  assert((await client.doctor()).length > 0);
  assert.deepEqual((await client.images()).map((image) => image.name), ["debian-bookworm"]);
  assert.equal((await client.pullImage("registry.test/library/alpine:3")).name, "alpine-3");
  const options = { name: "web", memory: 512 * 2 ** 20, disk_size: "1GiB", egress: ["example.com"] };
  await Sandbox.using({ ...options, publish: ["8080:80"] }, async (web) => {
    assert.deepEqual([web.properties.memory, web.properties.disk_size], [512 * 2 ** 20, 2 ** 30]);
    await web.egress.allow("github.com:443");
    await web.egress.deny("example.com");
    assert.deepEqual((await web.egress.show()).egress, ["github.com:443"]);
    assert.deepEqual((await web.ports.publish(81)).map((port) => port.guest_port), [81]);
    await web.ports.unpublish(8080);
    assert.deepEqual((await web.ports.published()).map((port) => port.guest_port), [81]);
    assert.equal((await web.suspend()).done, "suspended");
    await fails(banger.InvalidStateError, web.pause());
    assert.equal((await web.resume()).done, "resumed");
    assert.equal((await web.snapshot("clean")).name, "clean");
    await fails(banger.NameTakenError, web.snapshot("clean"));
    assert.deepEqual((await web.snapshots()).map((snapshot) => snapshot.sandbox), ["web"]);
    const forks = await web.fork({ count: 2, from_snapshot: "clean" });
    assert.deepEqual(forks.map((fork) => fork.name), ["web-1", "web-2"]);
    // The first signal may be missed before the subscription is active.
    let isSeen = false;
    const changes = (async () => {
      while (!isSeen) {
        await web.pause();
        await web.unpause();
      }
    })();
    for await (const event of client.events()) {
      isSeen = true;
      assert(event.interface.startsWith("dev.banger.Manager1") || event.path !== "");
      break;
    }
    await changes;
    await web.rename("site");
    assert.equal((await web.show()).name, "site");
    await Promise.all(forks.map((fork) => fork.delete()));
    await web.deleteSnapshot("clean");
    await fails(banger.NoSuchSnapshotError, web.deleteSnapshot("clean"));
    await fails(banger.AgentUnavailableError, web.exec(["true"]));
  });
  assert.deepEqual(await names(), []);
}

await (mode === "agent" ? withAgent() : withService());
console.log("ok");

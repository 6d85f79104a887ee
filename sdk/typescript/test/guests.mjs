// A program that works in sandboxes with the SDK, which a check of level 4 runs. PACKAGE is the directory of the SDK.

import { readFileSync, writeFileSync } from "node:fs";

import { BangerError, Sandbox, TimeLimitError } from "PACKAGE/dist/index.js";

const codeOf = (error) => (error instanceof BangerError ? error.code : String(error));
const work = await Sandbox.create({ vcpus: 1, labels: { made: "by sdk" }, publish: [8000] });
try {
  console.log("created", work.properties.state);
  const done = await work.exec(["sh", "-c", "echo out; echo err >&2; exit 3"]);
  console.log("command", done.exit_status, done.stdout.trim(), done.stderr.trim());
  console.log("input", (await work.exec(["cat"], { input: "hello" })).stdout);
  try {
    await work.exec(["sh", "-c", "echo begun; exec sleep 1000"], { time_limit: 20 });
  } catch (error) {
    console.log("limit", error instanceof TimeLimitError ? error.result.stdout.trim() : String(error));
  }
  const output = work.stream(["sh", "-c", "echo one; sleep 1; echo two"]);
  let text = "";
  for await (const chunk of output) {
    text += chunk.data;
  }
  console.log("stream", ...text.trim().split("\n"), output.exit_status);
  await work.files.write("/root/new/run", "#!/bin/sh\n", { mode: 0o755 });
  const [entry] = await work.files.list("/root/new");
  console.log("file", (await work.files.readText("new/run")).trim(), entry.mode);
  writeFileSync("upload", "up");
  await work.files.upload("upload", "/root/");
  await work.files.download("/root/upload", "download");
  console.log("copied", readFileSync("download", "utf8"));
  await work.exec(["/nonexistent"]).catch((error) => console.log("failed", codeOf(error)));
  const ports = await work.ports.published();
  console.log("published", ports.length === 1 && ports[0].guest_port === 8000 ? "True" : "False");
  console.log((await work.suspend()).done, (await work.resume()).done);
  const [fork] = await work.fork();
  try {
    console.log("fork kept", (await fork.files.readText("upload")) === "up" && fork.id !== work.id ? "True" : "False");
  } finally {
    await fork.delete();
  }
} finally {
  await work.delete();
}
await work.show().catch((error) => console.log("gone", codeOf(error)));
const controller = new AbortController();
const creation = Sandbox.create({ vcpus: 1, name: "cancelled", signal: controller.signal });
while (!(await Sandbox.list()).some((one) => one.name === "cancelled")) {
  await new Promise((resolve) => setTimeout(resolve, 100));
}
controller.abort();
await creation.catch(async (error) => {
  // The service deletes it by itself.
  while ((await Sandbox.list()).length > 0) {
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  console.log(error.name === "AbortError" ? "cancelled, nothing left" : String(error));
});

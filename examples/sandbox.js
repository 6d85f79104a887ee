#!/usr/bin/gjs -m
// Lists sandboxes, creates one, starts it, and deletes it, with GJS, the JavaScript of GNOME.

import Gio from "gi://Gio";
import GLib from "gi://GLib";
import System from "system";

Gio._promisify(Gio.DBusConnection.prototype, "call", "call_finish");

const SERVICE = "dev.banger.Manager1";
const MANAGER = "/dev/banger/Manager1";
const bus = Gio.bus_get_sync(Gio.BusType.SYSTEM, null);

/** Calls a method, with a password dialog if it needs one, and returns its values. */
async function call(path, face, method, signature, ...values) {
    const flags = Gio.DBusCallFlags.ALLOW_INTERACTIVE_AUTHORIZATION;
    const body = new GLib.Variant(signature, values);
    const reply = await bus.call(SERVICE, path, face, method, body, null, flags, GLib.MAXINT32, null);
    return reply.recursiveUnpack();
}

async function read(path, face, name) {
    const properties = "org.freedesktop.DBus.Properties";
    return (await call(path, properties, "Get", "(ss)", SERVICE + face, name))[0];
}

async function finish(job) {
    const [result, error, message] = await call(job, `${SERVICE}.Job`, "Wait", "(t)", 0);
    print(`${await read(job, ".Job", "Kind")}: ${result}`);
    if (result !== "done")
        throw new Error(`${error}: ${message}`);
}

function follow(face, signal, show) {
    const nothing = Gio.DBusSignalFlags.NONE;
    bus.signal_subscribe(SERVICE, SERVICE + face, signal, null, null, nothing,
        (_bus, _sender, _path, _face, _signal, values) => show(...values.recursiveUnpack()));
}

async function example() {
    follow(".Job", "Stage", (_stage, index, count, message) => print(`  ${index}/${count} ${message}`));
    follow(".VM", "StateChanged", (before, after) => print(`  ${before} -> ${after}`));
    await call(MANAGER, SERVICE, "Subscribe", "(a{sv})", {});

    const [sandboxes] = await call(MANAGER, SERVICE, "ListVMs", "(a{sv})", {});
    print(`sandboxes: ${sandboxes.length}`);

    // If this program ends early, the service deletes the sandbox.
    const options = {
        memory: new GLib.Variant("t", 512 * 1024 * 1024),
        start: new GLib.Variant("b", false),
        lifetime: new GLib.Variant("s", "caller"),
    };
    const [vm, created] = await call(MANAGER, SERVICE, "CreateVM", "(sa{sv})", "", options);
    await finish(created);

    const [started] = await call(vm, `${SERVICE}.VM`, "Start", "(a{sv})", {});
    await finish(started);
    print(`${await read(vm, ".VM", "State")} at ${await read(vm, ".VM", "Address")}`);

    const [deleted] = await call(vm, `${SERVICE}.VM`, "Delete", "(a{sv})", { force: new GLib.Variant("b", true) });
    await finish(deleted);
}

const loop = GLib.MainLoop.new(null, false);
let status = 0;
example()
    .catch(error => {
        printerr(error.message);
        status = 1;
    })
    .finally(() => loop.quit());
loop.run();
System.exit(status);

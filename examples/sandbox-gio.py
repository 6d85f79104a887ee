#!/usr/bin/python3
"""Lists sandboxes, creates one, starts it, and deletes it, with Gio (python3-gi in Debian, python3-gobject in Fedora).

Progress and states arrive as signals while the main loop runs.
"""
import gi

gi.require_version("Gio", "2.0")
from gi.repository import Gio, GLib

SERVICE, MANAGER = "dev.banger.Manager1", "/dev/banger/Manager1"
bus = Gio.bus_get_sync(Gio.BusType.SYSTEM)


def call(path, interface, method, signature, *arguments):
    """Calls a method, with a password dialog if it needs one, and returns its values."""
    flags = Gio.DBusCallFlags.ALLOW_INTERACTIVE_AUTHORIZATION
    body = GLib.Variant(signature, arguments)
    return bus.call_sync(SERVICE, path, interface, method, body, None, flags, GLib.MAXINT).unpack()


def read(path, interface, name):
    return call(path, "org.freedesktop.DBus.Properties", "Get", "(ss)", SERVICE + interface, name)[0]


def finish(job):
    """Runs the main loop until a job has ended, and prints its stages meanwhile."""
    loop, ended = GLib.MainLoop(), {}

    def waited(_bus, reply):
        ended["result"], ended["error"], ended["message"], _ = bus.call_finish(reply).unpack()
        loop.quit()

    # This reply comes even if the job has ended before the handlers of its signals were there.
    body = GLib.Variant("(t)", (0,))
    nothing = Gio.DBusCallFlags.NONE
    bus.call(SERVICE, job, SERVICE + ".Job", "Wait", body, None, nothing, GLib.MAXINT, None, waited)
    loop.run()
    print(f"{read(job, '.Job', 'Kind')}: {ended['result']}")
    if ended["result"] != "done":
        raise SystemExit(f"{ended['error']}: {ended['message']}")


def stage_began(_bus, _sender, _job, _interface, _signal, stage):
    _, index, count, message = stage.unpack()
    print(f"  {index}/{count} {message}")


def state_changed(_bus, _sender, _vm, _interface, _signal, states):
    old, new, _ = states.unpack()
    print(f"  {old} -> {new}")


nothing = Gio.DBusSignalFlags.NONE
bus.signal_subscribe(SERVICE, SERVICE + ".Job", "Stage", None, None, nothing, stage_began)
bus.signal_subscribe(SERVICE, SERVICE + ".VM", "StateChanged", None, None, nothing, state_changed)
call(MANAGER, SERVICE, "Subscribe", "(a{sv})", {})

(sandboxes,) = call(MANAGER, SERVICE, "ListVMs", "(a{sv})", {})
print(f"sandboxes: {len(sandboxes)}")

# If this program ends early, the service deletes the sandbox.
options = {
    "memory": GLib.Variant("t", 512 << 20),
    "start": GLib.Variant("b", False),
    "lifetime": GLib.Variant("s", "caller"),
}
vm, job = call(MANAGER, SERVICE, "CreateVM", "(sa{sv})", "", options)
finish(job)

(job,) = call(vm, SERVICE + ".VM", "Start", "(a{sv})", {})
finish(job)
print(f"{read(vm, '.VM', 'State')} at {read(vm, '.VM', 'Address')}")

(job,) = call(vm, SERVICE + ".VM", "Delete", "(a{sv})", {"force": GLib.Variant("b", True)})
finish(job)

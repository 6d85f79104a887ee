"""Prints what GLib's ObjectManager client sees of banger."""

import gi

gi.require_version("Gio", "2.0")
from gi.repository import Gio, GLib

NAME, PATH = "dev.banger.Manager1", "/dev/banger/Manager1"


def say(*words):
    print(*words, flush=True)


def name_of(thing):
    proxies = (proxy.get_cached_property("Name") for proxy in thing.get_interfaces())
    return next((name.unpack() for name in proxies if name), "")


def changed(_manager, thing, _proxy, values, _gone):
    for key, value in values.unpack().items():
        say("changed", thing.get_object_path(), key, value)


bus = Gio.bus_get_sync(Gio.BusType.SYSTEM)
manager = Gio.DBusObjectManagerClient.new_sync(bus, Gio.DBusObjectManagerClientFlags.NONE, NAME, PATH, None, None, None)
manager.connect("object-added", lambda _, thing: say("added", thing.get_object_path(), name_of(thing)))
manager.connect("object-removed", lambda _, thing: say("removed", thing.get_object_path()))
manager.connect("interface-proxy-properties-changed", changed)
say("ready")
GLib.MainLoop().run()

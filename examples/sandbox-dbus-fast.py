#!/usr/bin/python3
"""Lists sandboxes, creates one, starts it, and deletes it, with dbus-fast (python3-dbus-fast in Debian) and asyncio."""
import asyncio

from dbus_fast import BusType, Message, MessageFlag, MessageType, Variant
from dbus_fast.aio import MessageBus

SERVICE, MANAGER = "dev.banger.Manager1", "/dev/banger/Manager1"


def show(message):
    """Prints the signals that arrive for the sandbox and its jobs."""
    if message.message_type != MessageType.SIGNAL:
        return
    if (message.interface, message.member) == (SERVICE + ".Job", "Stage"):
        _, index, count, text = message.body
        print(f"  {index}/{count} {text}")
    elif (message.interface, message.member) == (SERVICE + ".VM", "StateChanged"):
        old, new, _ = message.body
        print(f"  {old} -> {new}")


async def example(bus):
    async def call(path, interface, member, signature, *body):
        """Calls a method, with a password dialog if it needs one, and returns its values."""
        reply = await bus.call(
            Message(
                destination=SERVICE,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=list(body),
                flags=MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION,
            )
        )
        if reply.message_type == MessageType.ERROR:
            raise SystemExit(f"{reply.error_name}: {reply.body[0]}")
        return reply.body

    async def read(path, interface, name):
        properties = "org.freedesktop.DBus.Properties"
        (value,) = await call(path, properties, "Get", "ss", SERVICE + interface, name)
        return value.value

    async def finish(job):
        result, error, message, _ = await call(job, SERVICE + ".Job", "Wait", "t", 0)
        print(f"{await read(job, '.Job', 'Kind')}: {result}")
        if result != "done":
            raise SystemExit(f"{error}: {message}")

    bus.add_message_handler(show)
    await call(MANAGER, SERVICE, "Subscribe", "a{sv}", {})

    (sandboxes,) = await call(MANAGER, SERVICE, "ListVMs", "a{sv}", {})
    print(f"sandboxes: {len(sandboxes)}")

    # If this program ends early, the service deletes the sandbox.
    options = {
        "memory": Variant("t", 512 << 20),
        "start": Variant("b", False),
        "lifetime": Variant("s", "caller"),
    }
    vm, job = await call(MANAGER, SERVICE, "CreateVM", "sa{sv}", "", options)
    await finish(job)

    (job,) = await call(vm, SERVICE + ".VM", "Start", "a{sv}", {})
    await finish(job)
    print(f"{await read(vm, '.VM', 'State')} at {await read(vm, '.VM', 'Address')}")

    (job,) = await call(vm, SERVICE + ".VM", "Delete", "a{sv}", {"force": Variant("b", True)})
    await finish(job)


async def main():
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    try:
        await example(bus)
    finally:
        bus.disconnect()


asyncio.run(main())

// What to do about each error of the service, by the last part of its name. docs/dbus.md has the same table.

const HINTS = {
    NoSuchVM: "The sandbox is gone. The list is current.",
    NoSuchImage: "Pull or import the image, or choose another.",
    NoSuchKernel: "Pull or import the kernel.",
    NoSuchJob: "The job has ended. The list is current.",
    NoSuchSnapshot: "List the snapshots of the sandbox: banger vm snapshot list NAME",
    AmbiguousRef: "Use more digits of the id.",
    NameTaken: "Choose another name, or delete the sandbox that has it.",
    InvalidName: "Use 1 to 63 lower-case letters, digits and hyphens.",
    InvalidOption: "Correct the value that the message names.",
    DiskTooSmall: "Choose a larger disk: disks cannot shrink.",
    InvalidState: "Start or stop the sandbox first.",
    BadFileDescriptor: "Choose a file of the right kind.",
    QuotaExceeded: "Stop or delete a sandbox, or ask the administrator for a higher limit.",
    TooManyRequests: "Wait until earlier work has ended, then try again.",
    HasSnapshots: "Delete its snapshots first: banger vm snapshot delete SANDBOX NAME",
    ImageInUse: "Delete the sandboxes of the image first.",
    KernelInUse: "Delete the images and sandboxes of the kernel first.",
    Paused: "Unpause the sandbox first.",
    Suspended: "Resume the sandbox first.",
    CannotResume: "Boot it from its disks, without its memory: banger vm start --cold NAME",
    NotReady: "The guest is still starting. Try again in a moment.",
    AgentUnavailable: "Read the console log, then stop and start the sandbox.",
    GuestTimeout: "The guest is still up. Read its console log.",
    Canceled: "",
    NotCancelable: "",
    UnsupportedImage: "Choose another image.",
    DigestMismatch: "Try again. If it happens again, tell the publisher of the image.",
    RegistryUnreachable: "Check the network of the host, then try again.",
    RegistryAuthRequired: "Log in to the registry, and pull the image with: banger image pull",
    RegistryError: "The message has what the registry says.",
    CatalogRefused: "Tell the administrator.",
    NotPublished: "The message says what to do instead.",
    NoSpace: "Free space on the host.",
    HostNotReady: "Run: banger doctor",
    VmmFailed: "Read the console log, and run: banger vm logs --vmm NAME",
    Busy: "Wait until the other work on it has ended, then try again.",
    AlreadyInUse: "Choose another port or address.",
    TooDeep: "Fork the parent of the sandbox, or make an image of it.",
    NoAddress: "Delete sandboxes that you do not need.",
    Internal: "Report it, with the journal of banger-system.",
    AccessDenied: "Ask the administrator to add you to the group banger.",
    InteractiveAuthorizationRequired: "Ask the administrator to add you to the group banger.",
    ServiceUnknown: "Install the package banger-system.",
    UnknownObject: "The sandbox is gone. The list is current.",
};

/** Returns the last part of the name of an error, which is all that differs. */
export function code(error) {
    return String(error.name || error.problem || "Internal").split(".").pop();
}

/** Returns what a person can do about an error; empty if there is nothing to do. */
export function hint(error) {
    return HINTS[code(error)] ?? "";
}

// The objects of the service, kept current by its signals. Nothing here touches the page.

const SERVICE = "dev.banger.Manager1";
const MANAGER = "/dev/banger/Manager1";
const OBJECTS = "org.freedesktop.DBus.ObjectManager";
const JOB = `${SERVICE}.Job`;
const RETRY_MS = 2000;

const cockpit = window.cockpit;

/** Returns a value without the types that D-Bus gives variants. */
function plain(value) {
    if (Array.isArray(value))
        return value.map(plain);
    if (value === null || typeof value !== "object")
        return value;
    if ("t" in value && "v" in value && Object.keys(value).length === 2)
        return plain(value.v);
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, plain(inner)]));
}

/** A connection to the service, and what it last said. `changed` is called after each change, `ended` with
 * each job that ends, and `failed` when the connection ends. */
export class Service {
    constructor(changed, ended, failed) {
        this.changed = changed;
        this.ended = ended;
        this.failed = failed;
        this.connect();
    }

    connect() {
        this.objects = new Map();
        this.limits = {};
        this.isReady = false;
        const client = cockpit.dbus(SERVICE, { bus: "system" });
        this.client = client;
        client.addEventListener("close", (_event, why) => this.end(client, why));
        // A service that starts again knows none of its subscribers.
        client.addEventListener("owner", (_event, owner) => owner ? this.load(client) : this.end(client, {}));
        client.subscribe({}, (path, face, signal, values) => this.heard(path, face, signal, values));
        this.load(client);
    }

    end(client, why) {
        if (client !== this.client)
            return;
        this.client = null;
        client.close();
        this.isReady = false;
        this.failed(why);
    }

    /** Connects again after a while. */
    retryLater() {
        window.setTimeout(() => this.client ?? this.connect(), RETRY_MS);
    }

    async load(client) {
        try {
            // This subscribes to the signals as well.
            const [all] = await client.call(MANAGER, OBJECTS, "GetManagedObjects", []);
            const [limits] = await client.call(MANAGER, SERVICE, "GetLimits", []);
            this.objects = new Map(Object.entries(plain(all)));
            this.limits = plain(limits);
            this.isReady = true;
            this.changed();
        } catch (error) {
            this.end(client, error);
        }
    }

    heard(path, face, signal, values) {
        if (face === OBJECTS && signal === "InterfacesAdded") {
            const added = plain(values[1]);
            this.objects.set(values[0], added);
            if (added[JOB]?.Result)
                this.ended({ path: values[0], ...added[JOB] });
        } else if (face === OBJECTS && signal === "InterfacesRemoved") {
            this.objects.delete(values[0]);
        } else if (signal === "PropertiesChanged") {
            const known = this.objects.get(path)?.[values[0]];
            if (!known)
                return;
            const wasRunning = known.Result === "";
            Object.assign(known, plain(values[1]));
            // The page draws later, or not at all in a hidden tab, and the job may be gone by then.
            if (values[0] === JOB && wasRunning && known.Result !== "")
                this.ended({ path, ...known });
        } else {
            return;
        }
        this.changed();
    }

    /** Returns all objects with an interface, such as "VM". */
    all(kind) {
        const face = `${SERVICE}.${kind}`;
        const withPath = ([path, faces]) => faces[face] && { path, ...faces[face] };
        return [...this.objects].map(withPath).filter(Boolean);
    }

    vm(path) {
        return this.objects.get(path)?.[`${SERVICE}.VM`];
    }

    /** Calls a method of an object, and returns its values. */
    call(path, kind, method, type, ...values) {
        const face = kind ? `${SERVICE}.${kind}` : SERVICE;
        if (!this.client)
            return Promise.reject(new Error("the service is not running"));
        return this.client.call(path, face, method, values, { type, flags: "i" });
    }

    create(name, options) {
        return this.call(MANAGER, "", "CreateVM", "sa{sv}", name, options);
    }
}

/** Returns a value as an option of this type. */
export function option(type, value) {
    return cockpit.variant(type, value);
}

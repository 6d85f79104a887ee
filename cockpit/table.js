// The table of sandboxes. A row stays the same element while its sandbox changes, so that the focus stays where it is.

import { button, element } from "./alerts.js";

const MIB = 1024 * 1024;

/** Returns a size as people read it. */
export function size(bytes) {
    const mebibytes = bytes / MIB;
    if (mebibytes < 1024)
        return `${Math.round(mebibytes)} MiB`;
    const gibibytes = mebibytes / 1024;
    return `${Number.isInteger(gibibytes) ? gibibytes : gibibytes.toFixed(1)} GiB`;
}

/** Sets the text of an element, if it is another one: a screen reader would read the same one again. */
function write(place, text) {
    if (place.textContent !== text)
        place.textContent = text;
}

const UP = ["starting", "running", "paused", "suspending", "resuming", "stopping"];

export function isUp(vm) {
    return UP.includes(vm.State);
}

/** The table, with what its buttons do. */
export class Table {
    constructor(table, act) {
        this.body = table.tBodies[0];
        this.act = act;
        this.rows = new Map();
    }

    /** Shows these sandboxes, by name. */
    show(vms) {
        vms.sort((a, b) => a.Name.localeCompare(b.Name) || a.Id.localeCompare(b.Id));
        const gone = new Set(this.rows.keys());
        vms.forEach((vm, index) => {
            gone.delete(vm.path);
            if (!this.rows.has(vm.path))
                this.rows.set(vm.path, this.row(vm));
            const row = this.rows.get(vm.path);
            row.fill(vm);
            if (this.body.rows[index] !== row.line)
                this.body.insertBefore(row.line, this.body.rows[index] ?? null);
        });
        for (const path of gone) {
            this.rows.get(path).line.remove();
            this.rows.delete(path);
        }
    }

    row(vm) {
        const line = document.createElement("tr");
        const cell = (name, classes, label) => {
            const made = element(name, classes, "");
            made.dataset.label = label;
            line.append(made);
            return made;
        };
        const name = cell("th", "name", "Name");
        name.scope = "row";
        const state = cell("td", "", "State");
        const mark = element("span", "state", "");
        const note = element("span", "muted note", "");
        state.append(mark, note);
        const image = cell("td", "name", "Image");
        const vcpus = cell("td", "number", "CPUs");
        const memory = cell("td", "number", "Memory");
        const address = cell("td", "address", "Address");
        const actions = cell("td", "actions", "");
        const { path } = vm;
        const add = (classes, text, what) => {
            const made = button(classes, text, text, () => this.act[what](path));
            actions.append(made);
            return made;
        };
        const buttons = {
            start: add("secondary", "Start", "start"),
            stop: add("secondary", "Stop", "stop"),
            unpause: add("secondary", "Unpause", "unpause"),
            resume: add("secondary", "Resume", "resume"),
            shell: add("secondary", "Terminal", "shell"),
            log: add("secondary", "Log", "log"),
            delete: add("link-danger", "Delete", "delete"),
        };
        const fill = now => {
            write(name, now.Name);
            write(mark, now.State);
            mark.dataset.state = now.State;
            write(note, this.note(now));
            write(image, now.ImageName);
            write(vcpus, String(now.Vcpus));
            write(memory, size(now.Memory));
            write(address, isUp(now) ? now.Address : "–");
            buttons.start.hidden = isUp(now) || now.State === "suspended";
            buttons.stop.hidden = !isUp(now);
            buttons.start.disabled = now.State === "deleting";
            buttons.stop.disabled = now.State === "stopping";
            buttons.unpause.hidden = now.State !== "paused";
            buttons.resume.hidden = now.State !== "suspended";
            buttons.shell.hidden = now.State === "paused";
            buttons.shell.disabled = !now.Ready;
            buttons.delete.disabled = now.State === "deleting";
            for (const made of Object.values(buttons))
                made.setAttribute("aria-label", `${made.textContent} ${now.Name}`);
        };
        return { line, fill };
    }

    /** Returns what the state alone does not say. */
    note(vm) {
        if (vm.State === "running" && !vm.Ready)
            return "guest is starting";
        return vm.State === "failed" ? vm.StateReason : "";
    }
}

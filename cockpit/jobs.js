// The jobs under way, with their progress, and a report of those that fail.

import { button, element } from "./alerts.js";

const WORDS = {
    "vm-create": "create",
    "vm-start": "start",
    "vm-stop": "stop",
    "vm-restart": "restart",
    "vm-suspend": "suspend",
    "vm-resume": "resume",
    "vm-delete": "delete",
    "image-import": "import",
    "image-pull": "pull",
    "image-commit": "commit",
    "image-export": "export",
    "kernel-import": "import",
    "kernel-pull": "pull",
};

export class Jobs {
    constructor(service, list, failed) {
        this.service = service;
        this.list = list;
        this.failed = failed;
        this.items = new Map();
        this.names = new Map();
    }

    /** Reports a job that has ended, if it failed. */
    ended(job) {
        if (job.Result === "failed")
            this.failed(`cannot ${this.label(job)}`, { name: job.ErrorName, message: job.ErrorMessage });
    }

    /** Shows the jobs under way. */
    show(jobs) {
        const running = jobs.filter(job => job.Result === "");
        const still = new Set(running.map(job => job.path));
        for (const job of running) {
            if (!this.items.has(job.path))
                this.items.set(job.path, this.item(job));
            this.items.get(job.path).fill(job);
        }
        for (const [path, item] of this.items) {
            if (still.has(path))
                continue;
            item.line.remove();
            this.items.delete(path);
        }
    }

    /** Returns what a job does, with the name of its object. That of a deleted object is remembered. */
    label(job) {
        for (const path of job.Objects) {
            const object = Object.values(this.service.objects.get(path) ?? {}).find(face => face.Name);
            if (object)
                this.names.set(job.path, object.Name);
        }
        const word = WORDS[job.Kind] ?? job.Kind;
        const name = this.names.get(job.path);
        return name ? `${word} ${name}` : word;
    }

    item(job) {
        const line = document.createElement("li");
        const title = element("strong", "name", "");
        const message = element("span", "muted", "");
        const bar = document.createElement("progress");
        const cancel = button("link", "Cancel", "Cancel", () => {
            this.service.call(job.path, "Job", "Cancel", "")
                .catch(error => this.failed(`cannot cancel: ${this.label(job)}`, error));
        });
        line.append(title, message, bar, cancel);
        this.list.append(line);
        const fill = now => {
            const label = this.label(now);
            title.textContent = label;
            const stage = now.StageIndex ? `${now.StageIndex} of ${now.StageCount}: ` : "";
            message.textContent = now.State === "queued" ? "waits for its turn" : stage + now.Message;
            bar.setAttribute("aria-label", label);
            // Without a value, the bar shows that there is something to wait for.
            if (now.Progress > 0)
                bar.value = now.Progress;
            else
                bar.removeAttribute("value");
            cancel.hidden = !now.Cancelable;
            cancel.setAttribute("aria-label", `Cancel: ${label}`);
        };
        return { line, fill };
    }
}

// The page of sandboxes: shows the objects of the service, and calls its methods.

import * as alerts from "./alerts.js";
import { code } from "./errors.js";
import { Jobs } from "./jobs.js";
import { Screen } from "./screen.js";
import { Service, option } from "./service.js";
import { Table, isUp } from "./table.js";

const MIB = 1024 * 1024;
const at = id => document.getElementById(id);

let opener = null;
let screen = null;
let isDrawing = false;
const service = new Service(draw, job => jobs.ended(job), unreachable);
const jobs = new Jobs(service, at("jobs"), (what, error) => alerts.show(at("alerts"), what, error));
const table = new Table(at("sandboxes"), {
    start: path => ask(path, "Start", "a{sv}", {}),
    stop: path => ask(path, "Stop", "a{sv}", {}),
    resume: path => ask(path, "Resume", "a{sv}", {}),
    unpause: path => ask(path, "Unpause", ""),
    shell: path => openPanel(path, true),
    log: path => openPanel(path, false),
    delete: confirmDelete,
});

/** Shows all objects, once for all the signals that come together. */
function draw() {
    if (isDrawing)
        return;
    isDrawing = true;
    window.requestAnimationFrame(() => {
        isDrawing = false;
        if (service.isReady)
            drawNow();
    });
}

function drawNow() {
    const vms = service.all("VM");
    announce(vms);
    table.show(vms);
    jobs.show(service.all("Job"));
    at("activity").hidden = jobs.items.size === 0;
    at("create").disabled = false;
    at("create").hidden = vms.length === 0;
    show(vms.length ? "sandboxes" : "empty");
    const up = vms.filter(isUp).length;
    const limit = service.limits.vms ? `, ${service.limits.vms} at most` : "";
    at("summary").textContent = vms.length ? `${up} running, ${vms.length} in all${limit}` : "";
}

/** Shows one of the things that can be where the table is. */
function show(which) {
    for (const id of ["sandboxes", "empty", "loading", "unreachable"])
        at(id).hidden = id !== which;
}

const states = new Map();

/** Announces to screen readers which sandboxes have changed their state. */
function announce(vms) {
    const news = vms.filter(vm => states.has(vm.path) && states.get(vm.path) !== vm.State);
    vms.forEach(vm => states.set(vm.path, vm.State));
    if (news.length)
        at("news").textContent = news.map(vm => `${vm.Name} is ${vm.State}`).join(", ");
}

function unreachable(why) {
    at("create").disabled = true;
    at("create").hidden = false;
    at("activity").hidden = true;
    at("summary").textContent = "";
    const problems = {
        "not-found": "The package banger-system is not installed, or the service does not start.",
        "access-denied": "You may not use the system bus.",
    };
    at("unreachable-why").textContent = problems[why.problem] ?? why.message ?? "The service ended.";
    show("unreachable");
    // A service that is only updated comes back at once.
    if (why.problem !== "not-found" && code(why) !== "AccessDenied")
        service.retryLater();
}

at("retry").addEventListener("click", () => {
    show("loading");
    service.client ?? service.connect();
});

/** Calls a method of a sandbox, and shows the error if there is one. */
function ask(path, method, type, ...values) {
    const name = service.vm(path)?.Name ?? "the sandbox";
    return service.call(path, "VM", method, type, ...values)
        .catch(error => alerts.show(at("alerts"), `cannot ${method.toLowerCase()} ${name}`, error));
}

// Dialogs: the browser keeps the focus inside and closes them with Esc.

for (const close of document.querySelectorAll("[data-close]"))
    close.addEventListener("click", () => close.closest("dialog").close());

/** Opens a dialog without the errors of last time. */
function open(dialog) {
    dialog.querySelector(".alerts").replaceChildren();
    dialog.showModal();
}

/** Runs what a form of a dialog asks for: it closes if that works, and shows the error in the dialog if not. */
async function submit(event, what, run) {
    event.preventDefault();
    const dialog = event.target.closest("dialog");
    const send = event.target.querySelector("[type=submit]");
    send.disabled = true;
    try {
        await run();
        dialog.close();
    } catch (error) {
        const place = dialog.querySelector(".alerts");
        place.replaceChildren();
        alerts.show(place, what, error);
    } finally {
        send.disabled = false;
    }
}

function openCreate() {
    const images = service.all("Image").sort((a, b) => a.Name.localeCompare(b.Name));
    const choices = images.map(image => new Option(image.Name, image.Id));
    at("new-image").replaceChildren(new Option("default", ""), ...choices);
    at("create-form").reset();
    open(at("create-dialog"));
}

at("create").addEventListener("click", openCreate);
at("create-first").addEventListener("click", openCreate);

at("create-form").addEventListener("submit", event => {
    const name = at("new-name").value;
    const options = {};
    if (at("new-image").value)
        options.image = option("s", at("new-image").value);
    if (at("new-vcpus").value)
        options.vcpus = option("u", Number(at("new-vcpus").value));
    if (at("new-memory").value)
        options.memory = option("t", Number(at("new-memory").value) * MIB);
    if (at("new-nat").checked)
        options.nat = option("b", true);
    submit(event, name ? `cannot create ${name}` : "cannot create a sandbox", () => service.create(name, options));
});

let doomed = null;

function confirmDelete(path) {
    const vm = service.vm(path);
    if (!vm)
        return;
    doomed = { path, vm };
    const running = isUp(vm) ? "It is running and will be killed, and its snapshots will be deleted with it. " : "";
    at("delete-what").textContent = `Delete ${vm.Name} with its disks? ${running}This cannot be undone.`;
    open(at("delete-dialog"));
}

at("delete-form").addEventListener("submit", event => {
    const { path, vm } = doomed;
    const options = { force: option("b", isUp(service.vm(path) ?? vm)) };
    submit(event, `cannot delete ${vm.Name}`, () => service.call(path, "VM", "Delete", "a{sv}", options));
});

// The panel with a terminal or a log.

function openPanel(path, isShell) {
    const vm = service.vm(path);
    if (!vm)
        return;
    opener = document.activeElement;
    at("panel").hidden = false;
    at("panel-title").textContent = isShell ? `Terminal of ${vm.Name}` : `Console log of ${vm.Name}`;
    at("panel-end").textContent = "";
    screen ??= new Screen(at("screen"), () => at("panel-close").focus());
    screen.useTheme(isDark());
    const ended = text => (at("panel-end").textContent = text);
    if (isShell)
        screen.openShell(vm.Name, ended);
    else
        screen.openLog(vm.Name, ended);
    at("panel").scrollIntoView({ block: "nearest" });
}

at("panel-close").addEventListener("click", () => {
    screen?.close();
    at("panel").hidden = true;
    opener?.focus();
});

// Cockpit's menu keeps the choice of light or dark here.

const systemIsDark = window.matchMedia("(prefers-color-scheme: dark)");

function isDark() {
    const style = window.localStorage.getItem("shell:style") ?? "auto";
    return style === "dark" || (style === "auto" && systemIsDark.matches);
}

function useTheme() {
    document.documentElement.classList.toggle("dark", isDark());
    screen?.useTheme(isDark());
}

systemIsDark.addEventListener("change", useTheme);
window.addEventListener("storage", useTheme);
window.addEventListener("cockpit-style", useTheme);
useTheme();

// A terminal in the page: a shell in a sandbox, or the console log of its guest.

const cockpit = window.cockpit;
/** What a guest writes fills no more of the browser's memory than these lines. */
const LINES = 5000;

/** The bright colours of terminals are too pale on white. */
const ON_WHITE = {
    green: "#3e8635",
    yellow: "#8f6a00",
    cyan: "#005f60",
    white: "#5b5f63",
    brightGreen: "#3e8635",
    brightYellow: "#8f6a00",
    brightCyan: "#005f60",
    brightBlue: "#0066cc",
    brightWhite: "#151515",
};
const THEMES = {
    light: { background: "#ffffff", foreground: "#151515", cursor: "#151515", selectionBackground: "#bee1f4", ...ON_WHITE },
    dark: { background: "#1b1d21", foreground: "#e0e0e0", cursor: "#e0e0e0", selectionBackground: "#38597a" },
};

export class Screen {
    constructor(place, leave) {
        this.terminal = new window.Terminal({
            fontFamily: "RedHatMono, 'Liberation Mono', 'DejaVu Sans Mono', monospace",
            fontSize: 14,
            scrollback: LINES,
            screenReaderMode: true,
            // A link comes from the guest: the page opens none.
            linkHandler: { activate() {} },
        });
        this.fit = new window.FitAddon.FitAddon();
        this.terminal.loadAddon(this.fit);
        this.terminal.open(place);
        // The Tab key belongs to the shell, so another one leaves it.
        this.terminal.attachCustomKeyEventHandler(event => {
            if (event.key !== "Escape" || !event.shiftKey)
                return true;
            leave();
            return false;
        });
        this.terminal.onData(data => this.channel?.send(data));
        this.terminal.onResize(({ rows, cols }) => this.isShell && this.channel?.control({ window: { rows, cols } }));
        window.addEventListener("resize", () => this.resize());
    }

    resize() {
        if (this.channel)
            this.fit.fit();
    }

    useTheme(isDark) {
        this.terminal.options.theme = isDark ? THEMES.dark : THEMES.light;
    }

    /** Opens a login shell in a sandbox. `ended` is called with what there is to say at the end. */
    openShell(name, ended) {
        this.open(["banger", "vm", "exec", "--tty", name], true, ended);
        this.terminal.focus();
    }

    /** Follows the console log of a sandbox. */
    openLog(name, ended) {
        this.open(["banger", "vm", "logs", "--follow", "--tail", "1000", name], false, ended);
    }

    open(command, isShell, ended) {
        this.close();
        this.isShell = isShell;
        this.terminal.reset();
        this.terminal.options.convertEol = !isShell;
        this.terminal.options.disableStdin = !isShell;
        this.fit.fit();
        const size = { rows: this.terminal.rows, cols: this.terminal.cols };
        const terminal = isShell ? { pty: true, window: size } : { err: "out" };
        const environ = ["TERM=xterm-256color"];
        const channel = cockpit.channel({ payload: "stream", spawn: command, environ, ...terminal });
        this.channel = channel;
        channel.addEventListener("message", (_event, data) => this.channel === channel && this.terminal.write(data));
        channel.addEventListener("close", (_event, end) => {
            if (this.channel !== channel)
                return;
            this.channel = null;
            ended(this.describe(end));
        });
    }

    describe(end) {
        if (end.problem)
            return `It ended: ${end.message || end.problem}.`;
        const what = this.isShell ? "The shell" : "The log";
        return end["exit-status"] ? `${what} ended with status ${end["exit-status"]}.` : `${what} ended.`;
    }

    close() {
        const channel = this.channel;
        this.channel = null;
        channel?.close();
    }
}

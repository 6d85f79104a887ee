#!/usr/bin/python3
# Uses the Cockpit page in a browser, as a person would. The browser is driven through a pipe
# (https://chromedevtools.github.io/devtools-protocol/). Pictures are left in the current directory.
import base64
import json
import os
import select
import subprocess
import sys
import tempfile
import time

image = sys.argv[1]

ADDRESS = "http://127.0.0.1:9090/banger"
# Chromium asks the internet for nothing with these.
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
).split()
# What a person waits for, on a busy machine that emulates guests.
PATIENCE_SECONDS = 120
LONG = "a-name-that-is-as-long-as-names-may-be-for-one-more-word-it-has"


class Browser:
    """A browser with one page."""

    def __init__(self):
        there, self.into = os.pipe()
        self.out, back = os.pipe()

        def give_pipes():
            # Above all descriptors in use, so that neither replaces the other.
            os.dup2(there, 200)
            os.dup2(back, 201)
            os.dup2(200, 3)
            os.dup2(201, 4)

        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        directory = f"--user-data-dir={self.profile.name}"
        self.process = subprocess.Popen(
            ["chromium", *FLAGS, directory, "about:blank"],
            preexec_fn=give_pipes,
            close_fds=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(there)
        os.close(back)
        self.number, self.buffer, self.session, self.said = 0, b"", None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Runtime.enable")
        self.call("Log.enable")

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.into, json.dumps(message).encode() + b"\0")
        while True:
            reply = self.next()
            if reply.get("id") == self.number:
                assert "error" not in reply, f"{method}: {reply['error']}"
                return reply["result"]
            if reply.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.said.append(json.dumps(reply["params"]))

    def next(self):
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.out], [], [], PATIENCE_SECONDS)
            assert ready, "the browser does not answer"
            read = os.read(self.out, 1 << 20)
            assert read, "the browser ended"
            self.buffer += read
        one, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(one)

    def run(self, script):
        """Runs a script in the page and returns its value."""
        reply = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, f"{script}: {reply['exceptionDetails']}"
        return reply["result"].get("value")

    def until(self, what, script):
        """Waits until a script has a value that is true, and returns it."""
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            try:
                value = self.run(script)
            except AssertionError:
                # The page may be between two documents.
                value = None
            if value:
                return value
            time.sleep(0.2)
        self.shoot("failure")
        text = self.run(f"{FRAME}?.body.innerText ?? document.body.innerText")
        raise SystemExit(f"waited for {what}; the page has {text!r}, the browser said {self.said[-5:]}")

    def shoot(self, name):
        with open(f"cockpit-{name}.png", "wb") as file:
            file.write(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def look(self, scheme, height):
        self.call(
            "Emulation.setDeviceMetricsOverride", width=1280, height=height, deviceScaleFactor=1, mobile=False
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def type(self, text):
        """Types a text, and the Enter key."""
        for letter in text:
            self.call("Input.dispatchKeyEvent", type="char", text=letter)
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key="Enter", windowsVirtualKeyCode=13)

    def end(self):
        self.process.kill()
        self.process.wait()
        self.profile.cleanup()


# The page is a frame in Cockpit's own.
FRAME = "document.querySelector('iframe[name*=banger]')?.contentDocument"


def find(selector):
    return f"{FRAME}?.querySelector({json.dumps(selector)})"


def click(browser, label):
    """Presses the button with this name, once it can be pressed."""
    button = f"[...{FRAME}.querySelectorAll('button')].find(it => it.checkVisibility() && !it.disabled" \
        f" && (it.ariaLabel ?? it.textContent.trim()) === {json.dumps(label)})"
    browser.until(f"the button {label}", f"{FRAME} && (it => it && (it.focus(), it.click(), true))({button})")


def state(name):
    row = f"[...{FRAME}.querySelectorAll('#sandboxes tbody tr')].find(it => it.cells[0].textContent === '{name}')"
    return f"{FRAME} && ({row}?.cells[1].innerText.trim() ?? 'none')"


def see(browser, name, expect):
    browser.until(f"{name} to be {expect}", f"({state(name)}) === {json.dumps(expect)}")


def banger(*words):
    subprocess.run(["banger", *words], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def log_in(browser):
    browser.call("Page.navigate", url=ADDRESS)
    browser.until("the form", "document.getElementById('login-button')?.checkVisibility()")
    for field in ("user", "password"):
        browser.run(f"document.getElementById('login-{field}-input').value = 'alice'")
    browser.run("document.getElementById('login-button').click()")
    browser.until("the page", f"{find('#empty')}?.checkVisibility()")


def fill(browser, selector, value):
    browser.run(f"void Object.assign({find(selector)}, {{ value: {value} }})")


def create(browser, name):
    fill(browser, "#new-name", json.dumps(name))
    fill(browser, "#new-memory", "'512'")
    options = f"[...{find('#new-image')}.options]"
    fill(browser, "#new-image", f"{options}.find(it => it.text === {json.dumps(image)}).value")
    click(browser, "Create and start")


def use(browser):
    browser.look("light", 800)
    log_in(browser)
    browser.shoot("empty")
    print("logged in")

    # Others' changes are seen at once.
    banger("vm", "create", "--quiet", "--no-start", "--name", LONG)
    see(browser, LONG, "created")
    print("sees what others create")

    # A job may be short: its line in the page is noticed when it comes.
    notice = f"new MutationObserver(() => (window.sawJob = true)).observe({find('#jobs')}, {{ childList: true }})"
    browser.run(f"void {notice}")
    click(browser, "Create sandbox")
    create(browser, "web")
    browser.until("a job", "window.sawJob")
    print("sees progress")
    see(browser, "web", "running")
    print("created")

    click(browser, "Create sandbox")
    create(browser, "web")
    alert = browser.until("an error", f"{find('dialog .alert')}?.innerText")
    assert "NameTaken" in alert and "Choose another name" in alert, alert
    click(browser, "Cancel")
    print("shows an error, its cause and what to do")

    click(browser, "Terminal web")
    browser.until("a prompt", f"{find('.xterm-rows')}?.innerText.includes('# ')")
    browser.type("echo $((6 * 7)) of $(hostname)")
    browser.until("the output", f"{find('.xterm-rows')}.innerText.includes('42 of web')")
    print("ran a command in the terminal")
    browser.shoot("light")
    browser.look("dark", 800)
    browser.until("a dark page", f"{FRAME}.documentElement.classList.contains('dark')")
    time.sleep(0.5)
    browser.shoot("dark")
    browser.look("light", 800)

    # A guest that continued from a template has said nothing yet.
    banger("vm", "exec", "web", "--", "sh", "-c", "echo said on the console > /dev/console")
    click(browser, "Log web")
    browser.until("the log", f"{find('.xterm-rows')}.innerText.includes('said on the console')")
    print("shows the log")

    click(browser, "Stop web")
    see(browser, "web", "stopped")
    print("stopped")
    for name in ("web", LONG):
        click(browser, f"Delete {name}")
        click(browser, "Delete")
        see(browser, name, "none")
    browser.until("nothing", f"{find('#empty')}.checkVisibility()")
    print("deleted")
    errors = [said for said in browser.said if "/banger/" in said and ("exception" in said or "Refused" in said)]
    assert not errors, errors


browser = Browser()
try:
    use(browser)
finally:
    browser.end()

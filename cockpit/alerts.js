// Errors as people read them: what failed, the cause, what to do, and the name to search for. All text is set as text,
// because the words of guests and images are never markup.

import { code, hint } from "./errors.js";

/** Returns an element with a class and a text. */
export function element(name, classes, text) {
    const made = document.createElement(name);
    made.className = classes;
    made.textContent = text;
    return made;
}

/** Returns a button with a label for screen readers, which do not read the row that it is in. */
export function button(classes, text, label, act) {
    const made = element("button", classes, text);
    made.type = "button";
    made.setAttribute("aria-label", label);
    made.addEventListener("click", act);
    return made;
}

/** How many errors are shown: older ones give way. */
const SHOWN = 4;

/** Shows an error in a place until it is dismissed. */
export function show(place, what, error) {
    const alert = element("div", "alert", "");
    alert.setAttribute("role", "alert");
    const close = button("plain", "×", `Dismiss: ${what}`, () => alert.remove());
    const text = element("div", "alert-text", "");
    text.append(element("strong", "", what));
    text.append(element("p", "", error.message || "There is no other message."));
    const next = hint(error);
    if (next)
        text.append(element("p", "next", next));
    text.append(element("code", "", code(error)));
    alert.append(text, close);
    while (place.children.length >= SHOWN)
        place.firstElementChild.remove();
    place.append(alert);
}

// Elements, without any text ever being read as markup.

/** An element. Properties by name, others as attributes; children are elements or texts. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** A quiet button. */
export function button(text, onclick, properties = {}) {
  return element("button", { type: "button", onclick, ...properties }, text);
}

/** Copy a text; without a secure context there is no clipboard, so that a selection does it. */
export async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Not allowed to this page: the other way may be.
    }
  }
  const area = element("textarea", { value: text, className: "visually-hidden" });
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return copied;
}

/** A text to copy, in a box with a button. */
export function codeBox(text) {
  const label = "Copy";
  const press = button(label, async () => {
    press.textContent = (await copy(text)) ? "Copied" : "Select it and copy";
    setTimeout(() => (press.textContent = label), 2000);
  });
  press.className = "copy";
  press.setAttribute("aria-live", "polite");
  return element("div", { className: "code" }, element("pre", { tabIndex: 0 }, text), press);
}

/** Save bytes or a text as a file. */
export function save(name, content, type) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** A probability for people. */
export function percent(value) {
  if (value > 0 && value < 0.001) return "<0.1%";
  if (value < 1 && value > 0.999) return ">99.9%";
  return `${(100 * value).toFixed(1)}%`;
}

/** A place to drop files of some types, or to choose them; several where that is said. */
export function dropZone({ title, detail, accept, multiple, take }) {
  const input = element("input", {
    type: "file", accept, multiple, className: "visually-hidden", id: "file",
  });
  const zone = element(
    "div", { className: "drop" }, input,
    element("label", { htmlFor: input.id }, element("strong", {}, title), element("span", {}, detail)),
  );
  const taken = (files) => files.length && take([...files]);
  input.addEventListener("change", () => {
    taken(input.files);
    // The same file, chosen again, is a change then.
    input.value = "";
  });
  // Anywhere on the page: whoever misses would leave it for the file.
  const over = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!over(event)) return;
    event.preventDefault();
    zone.classList.add("over");
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) zone.classList.remove("over");
  });
  addEventListener("drop", (event) => {
    if (!over(event)) return;
    event.preventDefault();
    zone.classList.remove("over");
    taken(event.dataTransfer.files);
  });
  return zone;
}

// A form made from a table's columns: the right control for each, missing where that is answered.

import { cellOf, textOf } from "./cells.js";
import { element } from "./dom.js";

const TITLES = {
  number: "Numbers", category: "Categories", boolean: "Yes or no", date: "Dates",
};
// More options are typed, with suggestions.
const MOST_OPTIONS = 60;
const OTHER = "\u0000other";
// What the controls of dates take.
const DAY = /^\d{4}-\d\d-\d\d$/;
const MOMENT = /^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,3})?)?$/;
// With more columns than these there is a box to find one, and groups by type.
const MANY = 20;
const VERY_MANY = 30;

/** fields: in the order of the columns. onchange: when a value has been changed by hand. */
export class Form {
  #columns;
  #missingTexts;
  #fields;
  element;

  constructor(input, { onchange, onsubmit }) {
    this.#columns = input.columns;
    this.#missingTexts = new Set(input.missing_texts);
    const times = new Set(
      input.columns
        .filter((column) => column.type === "date")
        .filter((column) => [column.low, column.high, column.typical].some((at) => at.includes("T")))
        .map((column) => column.name),
    );
    this.#fields = input.columns.map((column, place) => field(column, place, times, onchange));
    const found = element("p", { className: "found", role: "status" });
    this.element = element(
      "form", { noValidate: true, className: input.columns.length > VERY_MANY ? "many" : "" },
      ...(input.columns.length > MANY ? [this.#finder(found), found] : []),
      this.#groups(),
      element("button", { type: "submit", className: "primary" }, "Predict"),
    );
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      onsubmit();
    });
  }

  /** The row that the form says. */
  row() {
    return Object.fromEntries(
      this.#columns.map((column, place) => {
        const value = this.#fields[place].value();
        if (column.type === "boolean" && value) return [column.name, value === "true"];
        return [column.name, cellOf(column, value, this.#missingTexts)];
      }),
    );
  }

  /** Put a row's cells in; a column without one is missing. */
  fill(cells) {
    this.#columns.forEach((column, place) => this.#fields[place].fill(textOf(cells[column.name])));
    this.mark(null);
  }

  /** Mark the field that a refusal names, with its words; null for none. Returns whether one is. */
  mark(message, focus = false) {
    for (const { box } of this.#fields) box.classList.remove("bad");
    for (const { control, words } of this.#fields) {
      control.removeAttribute("aria-invalid");
      words.textContent = "";
    }
    if (message === null) return false;
    const place = this.#columns.findIndex(({ name }) => isAbout(message, name));
    if (place < 0) return false;
    const { box, control, words } = this.#fields[place];
    box.hidden = false;
    box.classList.add("bad");
    control.setAttribute("aria-invalid", "true");
    words.textContent = message;
    if (focus) control.focus();
    return focus;
  }

  #finder(found) {
    const search = element("input", { type: "search", id: "find", autocomplete: "off" });
    search.addEventListener("input", () => {
      const wanted = search.value.trim().toLowerCase();
      let shown = 0;
      this.#fields.forEach(({ box }, place) => {
        box.hidden = !this.#columns[place].name.toLowerCase().includes(wanted);
        shown += box.hidden ? 0 : 1;
      });
      for (const group of this.element.querySelectorAll("fieldset.group")) {
        group.hidden = !group.querySelector(".field:not([hidden])");
      }
      found.textContent = wanted ? `${shown} of ${this.#columns.length} columns` : "";
    });
    // Return finds; it does not send.
    search.addEventListener("keydown", (event) => event.key === "Enter" && event.preventDefault());
    return element(
      "div", { className: "find" },
      element("label", { htmlFor: "find" }, `Find one of ${this.#columns.length} columns`), search,
    );
  }

  #groups() {
    const boxes = (type) =>
      this.#fields.filter((_, place) => !type || this.#columns[place].type === type)
        .map(({ box }) => box);
    if (this.#columns.length <= VERY_MANY) {
      return element("div", { className: "fields" }, ...boxes());
    }
    const groups = Object.entries(TITLES)
      .map(([type, title]) => [title, boxes(type)])
      .filter(([, found]) => found.length)
      .map(([title, found]) =>
        element(
          "fieldset", { className: "group" },
          element("legend", {}, `${title} (${found.length})`),
          element("div", { className: "fields" }, ...found),
        ));
    return element("div", { className: "groups" }, ...groups);
  }
}

/** Whether a refusal is about the column, in one of the ways in which the service says so. */
function isAbout(message, name) {
  return (
    message.startsWith(`instances[0].${name}: `) ||
    message.startsWith(`instances[0]: column '${name}': `) ||
    message.endsWith(`field or column \`${name}\``)
  );
}

function field(column, place, times, onchange) {
  const id = `field-${place}`;
  const made = CONTROLS[column.type](column, id, times);
  const hint = element("p", { className: "hint", id: `${id}-hint` });
  const words = element("p", { className: "words", id: `${id}-words` });
  for (const control of made.controls) {
    control.setAttribute("aria-describedby", `${id}-hint ${id}-words`);
  }
  const label = made.isGroup
    ? element("legend", { title: column.name }, column.name)
    : element("label", { htmlFor: id, title: column.name }, column.name);
  const box = element(
    made.isGroup ? "fieldset" : "div", { className: "field" },
    label, ...made.shown, hint, words,
  );
  const tell = () => {
    const outside = isOutside(column, made.value());
    hint.textContent = outside ? `outside of training's ${hintOf(column)}` : hintOf(column);
    hint.classList.toggle("outside", outside);
  };
  box.addEventListener("change", () => {
    tell();
    onchange();
  });
  box.addEventListener("input", tell);
  const fill = (text) => {
    made.fill(text);
    tell();
  };
  fill(textOf(column.typical));
  return { box, control: made.controls[0], words, value: made.value, fill };
}

function hintOf(column) {
  if (column.type === "number") return `${short(column.low)} to ${short(column.high)}`;
  if (column.type === "date") return `${column.low} to ${column.high}`.replaceAll("T", " ");
  if (column.type === "category" && column.known > MOST_OPTIONS) {
    return `one of ${column.known.toLocaleString("en")}, or another`;
  }
  return "";
}

function isOutside(column, text) {
  const value = Number(text);
  return (
    column.type === "number" && text.trim() !== "" && (value < column.low || value > column.high)
  );
}

function short(number) {
  return number.toLocaleString("en", { maximumSignificantDigits: 4 });
}

// Each makes: controls (the first one takes the focus), what is shown, value() and fill(text).
const CONTROLS = {
  number: (column, id) =>
    typed(element("input", {
      type: "text", inputMode: "decimal", id, autocomplete: "off", placeholder: absent(column),
    })),
  date: (column, id, times) => {
    const native = times.has(column.name) ? "datetime-local" : "date";
    const input = element("input", { type: native, id, step: native === "date" ? "1" : "any" });
    return {
      ...typed(input),
      fill: (text) => {
        const whole = native === "date" || !DAY.test(text) ? text : `${text}T00:00`;
        // What a browser's own control cannot hold, the service may.
        const fits = !whole || (native === "date" ? DAY : MOMENT).test(whole);
        input.type = fits ? native : "text";
        input.value = fits ? whole : text;
      },
    };
  },
  boolean: (column, id) => {
    const choices = ["true", "false", ...(column.missing === "fill" ? [""] : [])];
    const controls = choices.map((value) =>
      element("input", { type: "radio", name: id, value, id: `${id}-${value || "missing"}` }));
    const options = controls.map((control, at) =>
      element(
        "span", {}, control,
        element("label", { htmlFor: control.id }, choices[at] || "missing"),
      ));
    return {
      isGroup: true,
      controls,
      shown: [element("div", { className: "choices" }, ...options)],
      value: () => controls.find((control) => control.checked)?.value ?? "",
      fill: (text) => controls.forEach((control) => (control.checked = control.value === text)),
    };
  },
  category: (column, id) => (column.known > MOST_OPTIONS ? suggested : chosen)(column, id),
};

function absent(column) {
  return column.missing === "fill" ? "missing" : "";
}

function typed(input, ...beside) {
  return {
    controls: [input],
    shown: [input, ...beside],
    value: () => input.value,
    fill: (text) => (input.value = text),
  };
}

function suggested(column, id) {
  const options = column.categories.map((value) => element("option", { value }));
  return typed(
    element("input", {
      type: "text", id, list: `${id}-list`, autocomplete: "off", placeholder: absent(column),
    }),
    element("datalist", { id: `${id}-list` }, ...options),
  );
}

/** A list to choose from, and a field for what is not in it. */
function chosen(column, id) {
  const select = element(
    "select", { id },
    ...column.categories.map((value) => element("option", { value }, value)),
    ...(column.missing === "fill" ? [element("option", { value: "" }, "missing")] : []),
    element("option", { value: OTHER }, "another ..."),
  );
  const other = element("input", {
    type: "text", autocomplete: "off", hidden: true, "aria-label": `${column.name}, another`,
  });
  select.addEventListener("change", () => {
    other.hidden = select.value !== OTHER;
    if (!other.hidden) other.focus();
  });
  return {
    controls: [select, other],
    shown: [select, other],
    value: () => (select.value === OTHER ? other.value : select.value),
    fill: (text) => {
      const known = column.categories.includes(text) || (!text && column.missing === "fill");
      select.value = known ? text : OTHER;
      other.hidden = known;
      other.value = known ? "" : text;
    },
  };
}

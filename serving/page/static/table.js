// Trying a model of tables: a form, held-out rows one click away, and a CSV of many rows.

import { AnswerPanel } from "./answer.js";
import { rowsRequest } from "./api.js";
import { textOf } from "./cells.js";
import { MOST_ROWS, answerCsv } from "./csv.js";
import { button, dropZone, element, save } from "./dom.js";
import { Form } from "./form.js";

/** Fill the page's places for it. */
export function tryTable(model, { input, answer, rows }) {
  const { columns, examples } = model.input;
  let truth = null;
  const form = new Form(model.input, {
    onchange: () => {
      // Another row than the example now.
      press(null);
      ask(false);
    },
    onsubmit: () => ask(true),
  });
  const panel = new AnswerPanel(answer, model, (error, focus) =>
    form.mark(error?.message ?? null, focus));
  const ask = (focus) => panel.ask(rowsRequest([form.row()]), { truth, focus });

  const chips = [{ cells: null, label: null }, ...examples].map((example, place) => {
    const label = example.label === null ? "" : model.labels[example.label];
    const words = [
      element("span", { className: "chip-name" }, place ? `Row ${place}` : "Typical values"),
      ...(label
        ? [
          element("span", { className: "visually-hidden" }, "labelled"),
          element("span", { className: "chip-label", title: label }, label),
        ]
        : []),
    ];
    const chip = element("button", { type: "button", className: "chip" }, ...words);
    chip.setAttribute("aria-pressed", "false");
    chip.addEventListener("click", () => {
      form.fill(example.cells ?? typical(columns));
      press(chip, example.label);
      ask(false);
    });
    return chip;
  });
  const press = (pressed, label = null) => {
    truth = label;
    for (const chip of chips) chip.setAttribute("aria-pressed", String(chip === pressed));
  };

  input.append(
    element(
      "div", { className: "examples", role: "group", "aria-labelledby": "examples-title" },
      element("h3", { id: "examples-title" }, model.made_up ? "Made-up rows" : "Held-out rows"),
      element(
        "p", { className: "hint" },
        model.made_up
          ? "Rows in the ranges of the real ones, which stay where they are."
          : "The model never learned from these. Beside each is its true label.",
      ),
      element("div", { className: "chips" }, ...chips),
    ),
    form.element,
  );
  rows.append(
    dropZone({
      title: "Many rows: drop a CSV here, or choose one",
      detail:
        "With the columns' names in its first line. It is read in this browser, " +
        `up to ${MOST_ROWS.toLocaleString("en")} rows of it.`,
      accept: ".csv,text/csv",
      multiple: false,
      take: (files) => answerCsv(files, model, results),
    }),
    button("Save the rows above as a CSV", () => {
      const cells = examples.map((row) => columns.map(({ name }) => textOf(row.cells[name])));
      const fields = columns.map(({ name }) => name);
      save(`${model.name}.csv`, window.Papa.unparse({ fields, data: cells }), "text/csv");
    }, { className: "quiet" }),
  );
  const results = element("div");
  rows.append(results);
  press(chips[0]);
  panel.invite("Take a row, or change a value: the answer comes here.");
}

function typical(columns) {
  return Object.fromEntries(columns.map(({ name, typical: cell }) => [name, cell]));
}

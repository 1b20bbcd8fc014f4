// A CSV's rows, answered in requests of bounded size. Columns and refusals are those of
// `parityline score`: what it would reject is refused here, and the answers are the same.

import { notice, refusalBox } from "./answer.js";
import { Refusal, predict, rowsRequest, unreadable } from "./api.js";
import { cellOf } from "./cells.js";
import { element } from "./dom.js";
import { Results } from "./results.js";

export const MOST_ROWS = 10_000;
// What has no line ends would fill the memory.
const MOST_BYTES = 128 * 2 ** 20;
const MOST_REFUSED = 100;
// Of one request.
const ROWS = 500;
const CELLS = 20_000;
const TRIES = 5;
const SHOWN_COLUMNS = 4;
// What a browser reads where there is no UTF-8.
const DAMAGED = "\uFFFD";

/** Read the first of the files, ask for all its rows, and show what comes in `place`. */
export async function answerCsv([file, ...others], model, place) {
  const { columns, missing_texts: missing } = model.input;
  const reading = element("p", { role: "status" }, `Reading ${file.name} ...`);
  place.replaceChildren(reading);
  const refuse = (error) => {
    const box = refusalBox(error);
    place.replaceChildren(element("div", { className: "results" }, element("h3", {}, file.name), box));
    box.focus();
  };
  const { names, records, more, problem } = await read(file, columns);
  // Another file has come.
  if (!reading.isConnected) return;
  if (problem) return refuse(problem);
  const at = new Map(names.map((name, position) => [name, position]));
  // A column that is not there is the service's to miss.
  const present = columns.filter(({ name }) => at.has(name));
  const missingTexts = new Set(missing);
  const instance = (record) =>
    Object.fromEntries(
      present.map((column) => [column.name, cellOf(column, record[at.get(column.name)], missingTexts)]),
    );
  const shown = names.slice(0, SHOWN_COLUMNS);
  const results = new Results(place, file.name, ["row", ...shown]);
  const outcomes = [];
  const size = Math.max(1, Math.min(ROWS, model.max_rows, Math.floor(CELLS / columns.length)));
  let refused = 0;
  let failure = null;
  for (let start = 0; start < records.length && !results.stopped && !failure; start += size) {
    const batch = records.slice(start, start + size);
    const answers = await answerBatch(batch, instance, names, model, () => results.stopped);
    failure = answers.failure;
    answers.outcomes.forEach((outcome, position) => {
      if (outcome === undefined) return;
      const record = batch[position];
      const cells = [String(start + position), ...shown.map((_, column) => record[column] ?? "")];
      if (outcome instanceof Refusal) results.refused(cells, outcome.message);
      else results.answered(cells, outcome);
      refused += outcome instanceof Refusal ? 1 : 0;
      outcomes.push([start + position, record, outcome]);
    });
    results.progress(Math.min(start + size, records.length), records.length);
    if (refused > MOST_REFUSED) break;
  }
  const notes = [];
  if (results.stopped) notes.push("Stopped.");
  if (refused > MOST_REFUSED) notes.push(`Ended after more than ${MOST_REFUSED} refused rows.`);
  if (more) {
    notes.push(
      `This page takes up to ${MOST_ROWS.toLocaleString("en")} rows and ${MOST_BYTES / 2 ** 20} MB; ` +
        "`parityline score` takes any number.",
    );
  }
  if (others.length) notes.push(`It is the first of ${others.length + 1} files.`);
  if (failure && !outcomes.length && !results.stopped) return refuse(failure);
  const csv = { name: `${file.name.replace(/\.csv$/i, "")}.answers.csv`, text: () => written(names, outcomes, model) };
  results.end(notes, outcomes.length ? csv : null, failure);
}

/** The header and the first rows, or as `problem` why there are none. Blank lines are none, unless
 *  there is only one column. */
async function read(file, columns) {
  let text;
  try {
    // Papa would decode it in pieces, and damage a character that lies across two.
    text = await file.slice(0, MOST_BYTES).text();
  } catch {
    return { problem: unreadable() };
  }
  const rows = [];
  let more = false;
  window.Papa.parse(text, {
    delimiter: ",",
    step: ({ data }, parser) => {
      if (data.length === 1 && data[0] === "" && (rows[0]?.length ?? 2) > 1) return;
      if (rows.length > MOST_ROWS) {
        more = true;
        parser.abort();
        return;
      }
      rows.push(data);
    },
  });
  if (!more && file.size > MOST_BYTES) {
    // The last one is cut off.
    rows.pop();
    more = true;
  }
  const [names = [], ...records] = rows;
  const problem = headerProblem(names, columns, records);
  return { names, records, more, problem: problem && new Refusal(problem, null) };
}

function headerProblem(names, columns, records) {
  const twice = columns.filter(({ name }) => names.filter((found) => found === name).length > 1);
  if (twice.length) return `column twice: ${twice.map(({ name }) => `'${name}'`).join(", ")}`;
  if (!columns.some(({ name }) => names.includes(name))) {
    const expected = some(columns.map(({ name }) => name));
    return (
      `none of the model's columns is there: expected ${expected} in the first line, separated by ` +
      `commas, found ${names.length ? some(names) : "nothing"}`
    );
  }
  return records.length ? null : "expected rows below the columns' names, found none";
}

/** The first of the names, as far as anybody reads. */
function some(names) {
  const shown = names.slice(0, 5).map((name) => `'${name.length > 60 ? `${name.slice(0, 59)}…` : name}'`);
  return shown.join(", ") + (names.length > 5 ? " ..." : "");
}

/** An outcome for each row: its prediction, or why it is refused; none after a failure. */
async function answerBatch(batch, instance, names, model, stopped) {
  const outcomes = new Array(batch.length);
  const known = new Set(model.input.columns.map(({ name }) => name));
  batch.forEach((record, position) => {
    const damaged = names.find((name, column) => known.has(name) && record[column]?.includes(DAMAGED));
    if (record.length !== names.length) {
      outcomes[position] = new Refusal(`expected ${names.length} cells, found ${record.length}`, null);
    } else if (damaged !== undefined) {
      outcomes[position] = new Refusal(`column '${damaged}': expected UTF-8`, null);
    }
  });
  for (let waits = 0, refused = 0; refused <= MOST_REFUSED && !stopped();) {
    const open = [...batch.keys()].filter((position) => outcomes[position] === undefined);
    if (!open.length) break;
    try {
      const answer = await predict(rowsRequest(open.map((position) => instance(batch[position]))));
      open.forEach((position, row) => (outcomes[position] = answer.predictions[row]));
      notice(model, answer.model);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      const row = Number(/^instances\[(\d+)\]/.exec(error.message)?.[1] ?? NaN);
      if (error.status === 400 && row < open.length && !error.message.includes("missing field")) {
        // Its words without the place, which is the row's own.
        const words = error.message.replace(/^instances\[\d+\](\.|: )/, "");
        outcomes[open[row]] = new Refusal(words, 400);
        refused += 1;
      } else if (error.status === 503 && waits < TRIES) {
        waits += 1;
        await new Promise((resolve) => setTimeout(resolve, 1000 * Number(error.retryAfter ?? 1)));
      } else {
        return { outcomes, failure: error };
      }
    }
  }
  return { outcomes, failure: null };
}

/** As `parityline score` writes them: what came, then row, label, index and probabilities. */
function written(names, outcomes, model) {
  const ours = ["row", "label", "index", "probability", ...model.labels.map((label) => `probability_${label}`)];
  const taken = new Set([...ours, "refused"]);
  const passed = names.map((name) => {
    let free = name;
    while (taken.has(free)) free = `input_${free}`;
    taken.add(free);
    return free;
  });
  const fields = [...passed, ...ours, "refused"];
  const data = outcomes.map(([row, record, outcome]) => {
    const cells = names.map((_, column) => record[column] ?? "");
    if (outcome instanceof Refusal) {
      return [...cells, row, ...ours.slice(1).map(() => ""), outcome.message];
    }
    const { label, index, probability, probabilities } = outcome;
    return [...cells, row, label, index, probability, ...model.labels.map((name) => probabilities[name]), ""];
  });
  return window.Papa.unparse({ fields, data });
}

// Many answers: a table that grows as they come, and a CSV of all of them.

import { refusalBox } from "./answer.js";
import { button, element, percent, save } from "./dom.js";

const SHOWN = 200;

/** names: of the columns that are shown; the answer comes after the first, so that it is in sight
 *  on a phone too. place: where it goes, instead of what is there. */
export class Results {
  #body = element("tbody");
  #state = element("p", { className: "state", role: "status" });
  #progress = element("progress", { max: 1, value: 0, "aria-label": "Rows answered" });
  #after = element("div", { className: "actions" });
  #counts = { answered: 0, refused: 0 };
  #stop = false;
  #box;

  constructor(place, title, names) {
    const [first, ...others] = names;
    const head = element(
      "tr", {},
      ...[first, "label", "probability", ...others].map((name) => element("th", { scope: "col" }, name)),
    );
    head.children[2].className = "number";
    this.#after.append(button("Stop", () => (this.#stop = true)));
    this.#box = element(
      "div", { className: "results" },
      element("h3", {}, title), this.#state, this.#progress, this.#after,
      element(
        "div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": title },
        element("table", { className: "answers" }, element("thead", {}, head), this.#body),
      ),
    );
    place.replaceChildren(this.#box);
    this.#box.scrollIntoView({ block: "nearest" });
  }

  /** Whether it is to end: so it was asked to, or others have taken its place. */
  get stopped() {
    return this.#stop || !this.#box.isConnected;
  }

  /** A row that was answered. cells: texts or elements, in the order of the names. */
  answered(cells, prediction) {
    this.#counts.answered += 1;
    if (this.#counts.answered > SHOWN) return;
    this.#row(
      cells,
      element("td", { className: "cell-label" }, prediction.label),
      element("td", { className: "number" }, percent(prediction.probability)),
    );
  }

  /** A row that was refused; each of them is shown. */
  refused(cells, reason) {
    this.#counts.refused += 1;
    this.#row(cells, element("td", { className: "words", colSpan: 2 }, reason));
  }

  #row(cells, ...outcome) {
    const [first, ...others] = cells.map((cell) => element("td", {}, cell));
    this.#body.append(element("tr", {}, first, ...outcome, ...others));
  }

  /** How far it is, of all rows. */
  progress(done, all) {
    this.#progress.value = all ? done / all : 1;
    this.#state.textContent = `${done.toLocaleString("en")} of ${all.toLocaleString("en")}`;
  }

  /** It is over. notes: what else there is to say. csv: null, or {name, text()} to save. failure:
   *  what ended it, or null. */
  end(notes, csv, failure = null) {
    const { answered, refused } = this.#counts;
    const count = (number, word) => `${number.toLocaleString("en")} ${word}`;
    const parts = [count(answered, "answered"), ...(refused ? [count(refused, "refused")] : [])];
    const more = answered > SHOWN ? [`The first ${SHOWN} answers are shown.`] : [];
    this.#state.textContent = [`${parts.join(", ")}.`, ...more, ...notes].join(" ");
    this.#progress.remove();
    this.#after.replaceChildren(
      ...(csv ? [button("Save all answers as CSV", () => save(csv.name, csv.text(), "text/csv"))] : []),
    );
    if (failure) this.#box.append(refusalBox(failure));
  }
}

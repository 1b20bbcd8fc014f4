// What came of a request: the answer as bars, or the service's own words of refusal.

import { Refusal, predict, token } from "./api.js";
import { button, codeBox, element, percent } from "./dom.js";

const SHOWN = 10;
// So few stay in their own order, so that they can be watched while a value changes.
const IN_ORDER = 4;
const TITLES = {
  0: "No answer",
  null: "This file is not taken",
  401: "The service asks for a token",
  413: "That is too large",
  503: "The service is busy",
  504: "No answer in time",
};

/** The panel of the answer. onRefusal: told of each refusal, before it is shown. */
export class AnswerPanel {
  #panel;
  #model;
  #onRefusal;
  #running = null;
  #picture = element("img", { className: "asked", alt: "", hidden: true });
  #status = element("div", { className: "outcome", role: "status" });
  #body = element("div", { className: "details" });
  #all = false;
  #peek;

  constructor(panel, model, onRefusal = () => {}) {
    this.#panel = panel;
    this.#model = model;
    this.#onRefusal = onRefusal;
    panel.replaceChildren(
      element("h3", { id: "answer-title" }, "Answer"), this.#picture, this.#status, this.#body,
    );
    panel.hidden = false;
    panel.tabIndex = -1;
    this.#picture.addEventListener("error", () => (this.#picture.hidden = true));
    this.#peek = peek(panel);
  }

  /** What to do first, as long as nothing was asked. */
  invite(text) {
    this.#status.replaceChildren(element("p", { className: "invite" }, text));
  }

  /** Send it and show what comes; a later one takes its place. truth: the true label's index.
   *  picture: a Blob to show beside the answer.
   *  focus: whether a refusal is to have the focus, as after a press of a button. */
  async ask(request, { truth = null, picture = null, focus = false } = {}) {
    this.#running?.abort();
    const running = (this.#running = new AbortController());
    this.#panel.setAttribute("aria-busy", "true");
    try {
      const answer = await predict(request, running.signal);
      if (running !== this.#running) return;
      this.#showPicture(picture);
      this.#show(answer, truth);
    } catch (error) {
      if (running !== this.#running) return;
      if (!(error instanceof Refusal)) throw error;
      this.#showPicture(picture);
      this.refuse(error, focus, () => this.ask(request, { truth, picture, focus }));
    } finally {
      if (running === this.#running) this.#panel.removeAttribute("aria-busy");
    }
  }

  #showPicture(blob) {
    URL.revokeObjectURL(this.#picture.src);
    this.#picture.hidden = blob === null;
    if (blob) this.#picture.src = URL.createObjectURL(blob);
    this.#picture.classList.toggle("pixels", this.#model.input.width <= 64);
  }

  #show(answer, truth) {
    const [prediction] = answer.predictions;
    const { labels, threshold, reference } = this.#model;
    // After a promotion another version answers, maybe with labels of its own.
    const known = answer.model === reference;
    this.#onRefusal(null);
    this.#status.replaceChildren(
      element("p", { className: "label" }, prediction.label),
      element("p", { className: "probability" }, percent(prediction.probability)),
    );
    if (truth !== null) {
      const right = labels[truth] === prediction.label;
      const words = right ? "Right" : `Wrong: its true label is ${labels[truth]}`;
      this.#status.append(element("p", { className: right ? "right" : "wrong" }, words));
    }
    this.#body.replaceChildren(
      this.#bars(prediction, known ? labels : Object.keys(prediction.probabilities)),
      ...(threshold === 0.5 || !known
        ? []
        : [element("p", { className: "meta" }, `${labels[1]} is the answer above ${percent(threshold)}`)]),
      element(
        "p", { className: "meta" },
        `${answer.ms < 10 ? answer.ms.toFixed(1) : Math.round(answer.ms)} ms round trip`,
      ),
      fold("This request as curl", codeBox(answer.curl)),
      fold("The whole answer", codeBox(answer.text)),
    );
    this.#peek(prediction.label, percent(prediction.probability));
    notice(this.#model, answer.model);
  }

  #bars(prediction, labels) {
    const order = labels.map((label) => ({ label, value: prediction.probabilities[label] }));
    if (labels.length > IN_ORDER) order.sort((a, b) => b.value - a.value);
    const list = element("ol", { className: "bars" });
    const fill = () => {
      const shown = this.#all ? order : order.slice(0, SHOWN);
      list.replaceChildren(...shown.map((entry) => bar(entry, entry.label === prediction.label)));
    };
    fill();
    const box = element("div", {}, list);
    if (order.length > SHOWN) {
      const text = () => (this.#all ? `Only the first ${SHOWN}` : `All ${order.length} labels`);
      const toggle = button(text(), () => {
        this.#all = !this.#all;
        fill();
        toggle.textContent = text();
        toggle.setAttribute("aria-expanded", String(this.#all));
      }, { className: "quiet" });
      toggle.setAttribute("aria-expanded", String(this.#all));
      box.append(toggle);
    }
    return box;
  }

  /** Show a refusal. again: what to do where it may go better the next time. */
  refuse(error, focus = false, again = null) {
    const handled = this.#onRefusal(error, focus);
    this.#body.replaceChildren();
    this.#status.replaceChildren();
    const box = refusalBox(error);
    if (again && (error.status === 0 || error.status >= 500)) box.append(button("Try again", again));
    if (error.status === 401) {
      box.append(button("Give another token", () => {
        token.forget();
        location.reload();
      }));
    }
    this.#status.append(box);
    this.#peek(TITLES[error.status] ?? "Refused");
    if (focus && !handled) box.focus();
  }
}

/** The service's words, under what kind of refusal it is. */
export function refusalBox(error) {
  const title = TITLES[error.status] ?? "The service refuses this";
  const box = element(
    "div", { className: "refusal", tabIndex: -1 },
    element("p", { className: "refusal-title" }, title),
    element("p", { className: "words" }, error.message),
  );
  if (error.retryAfter) {
    box.append(element("p", { className: "meta" }, `It asks to wait ${error.retryAfter} s.`));
  }
  return box;
}

/** Say that another version answers than the one that this page is about. */
export function notice(model, answered) {
  const place = document.getElementById("notice");
  if (answered === model.reference || place.hasChildNodes()) return;
  place.append(
    `The service now answers with ${answered}, this page is about ${model.reference}. `,
    element("a", { href: "" }, "Load the page anew"),
  );
}

const still = matchMedia("(prefers-reduced-motion: reduce)");

/** Where the answer is out of sight, as on a phone below a form: a line of it at the bottom. */
function peek(panel) {
  const line = button("", () => {
    panel.focus({ preventScroll: true });
    panel.scrollIntoView({ behavior: still.matches ? "auto" : "smooth" });
  }, { className: "peek", hidden: true });
  document.body.append(line);
  let inSight = true;
  const show = () => (line.hidden = inSight || !line.textContent);
  new IntersectionObserver(([entry]) => {
    // Above it is what was scrolled past.
    inSight = entry.isIntersecting || entry.boundingClientRect.top < 0;
    show();
  }).observe(panel);
  return (...texts) => {
    line.replaceChildren(...texts.map((text) => element("span", {}, text)));
    show();
  };
}

function bar({ label, value }, answered) {
  const inner = element("span", { className: "bar-fill" });
  // Not a style attribute, which the page's policy forbids.
  inner.style.inlineSize = `${100 * value}%`;
  return element(
    "li", { className: answered ? "answered" : "", title: `${label}: ${value}` },
    element("span", { className: "bar-label" }, label),
    element("span", { className: "bar-value", "data-probability": String(value) }, percent(value)),
    element("span", { className: "bar", "aria-hidden": "true" }, inner),
  );
}

function fold(title, content) {
  return element("details", {}, element("summary", {}, title), content);
}

// The page from its start: the token where one is asked for, then trying the model.

import { Refusal, ask, token } from "./api.js";
import { button, copy, save } from "./dom.js";
import { tryImages } from "./image.js";
import { tryTable } from "./table.js";

const signIn = document.getElementById("sign-in");
if (signIn) {
  const field = document.getElementById("token");
  signIn.addEventListener("submit", (event) => {
    event.preventDefault();
    open(field.value.trim(), field);
  });
  if (token.get()) open(token.get(), field);
  else field.focus();
} else {
  start();
}

/** The page itself, which no browser can ask for with a token by going there. */
async function open(given, field) {
  const words = document.getElementById("token-error");
  words.textContent = "";
  // What fits into a header: whatever else would fail as if there were no service.
  if (!/^[\x21-\x7e]+$/.test(given)) {
    words.textContent = "A token has Latin letters, digits and signs, and no blanks.";
    return;
  }
  token.set(given);
  try {
    const response = await ask("./", { headers: { Accept: "text/html" } });
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    document.title = page.title;
    document.body.replaceWith(document.adoptNode(page.body));
    start();
  } catch (error) {
    token.forget();
    if (!(error instanceof Refusal)) throw error;
    words.textContent = error.message;
    field.setAttribute("aria-invalid", "true");
    field.select();
  }
}

function start() {
  const model = JSON.parse(document.getElementById("data").textContent);
  const [input, answer, rows] = ["input", "answer", "rows"].map((id) => document.getElementById(id));
  (model.input.kind === "image" ? tryImages : tryTable)(model, { input, answer, rows });
  showCall();
  if (!model.token) return;
  const forget = document.getElementById("forget");
  forget.hidden = false;
  forget.addEventListener("click", () => {
    token.forget();
    location.reload();
  });
  for (const link of document.querySelectorAll('a[href]:not([href^="#"])')) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      download(link.getAttribute("href"), model);
    });
  }
}

/** The request that the service wrote, at the address at which it was reached, and a button. */
function showCall() {
  const call = document.getElementById("call");
  const here = new URL(".", document.baseURI).href.replace(/\/$/, "");
  call.textContent = call.textContent.replaceAll(call.dataset.url, here);
  const press = button("Copy", async () => {
    press.textContent = (await copy(call.textContent)) ? "Copied" : "Select it and copy";
    setTimeout(() => (press.textContent = "Copy"), 2000);
  });
  press.className = "copy";
  call.after(press);
}

/** A document that a link cannot ask for, as it sends no token. */
async function download(path, model) {
  const endings = { report: ".html", metrics: ".txt", model: ".json" };
  const notice = document.getElementById("notice");
  try {
    const response = await ask(path);
    save(`${model.name}-${path}${endings[path] ?? ""}`, await response.blob());
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    notice.textContent = error.message;
  }
}

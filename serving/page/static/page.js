// The page from its start: the token where one is asked for, then trying the model.

import { Refusal, ask, token } from "./api.js";
import { button, copy, element } from "./dom.js";
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

/** What this address has, which no browser can ask for with a token by going there. */
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
    await show(await (await ask(location.pathname)).blob());
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    // Whatever else it is refused for, it may be right.
    if (error.status === 401) token.forget();
    words.textContent = error.message;
    field.value = given;
    field.setAttribute("aria-invalid", "true");
    field.select();
  }
}

/** In this document's place: the page, the report, or a text. */
async function show(blob) {
  const text = await blob.text();
  if (!blob.type.startsWith("text/html")) {
    document.title = location.pathname;
    document.body.replaceChildren(element("pre", {}, text));
    return;
  }
  const found = new DOMParser().parseFromString(text, "text/html");
  if (found.querySelector("script#data")) {
    document.title = found.title;
    document.body.replaceWith(document.adoptNode(found.body));
    start();
  } else {
    // It brings a style of its own.
    document.documentElement.replaceWith(document.adoptNode(found.documentElement));
    if (location.hash) location.replace(location.hash);
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

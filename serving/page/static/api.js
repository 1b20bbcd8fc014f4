// The service's own API, as any caller uses it.

// One for the page and all that it links to.
const KEY = `parityline token of ${new URL(".", location.href).pathname}`;

/** The tab's token: never in a URL, never on disk. */
export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** What the service answers instead. status: 0 where there was no answer, null where nothing could
 *  be asked. */
export class Refusal extends Error {
  constructor(message, status, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** A response that is none of refusal. Paths are relative, so that a prefix before them holds. */
export async function ask(path, { headers = {}, ...options } = {}) {
  const given = token.get();
  if (given) headers = { ...headers, Authorization: `Bearer ${given}` };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (options.body instanceof Blob && !(await isReadable(options.body))) throw unreadable();
    throw new Refusal("The service does not answer. Is it still running, and can it be reached?", 0);
  }
  if (response.ok) return response;
  const text = await response.text();
  let message = text.trim() || response.statusText;
  try {
    message = JSON.parse(text).error ?? message;
  } catch {
    // A proxy's own page, not the service's words.
    message = `${response.status} ${response.statusText}`.trim();
  }
  throw new Refusal(message, response.status, response.headers.get("Retry-After"));
}

/** What there is to say of a file that cannot be read. */
export function unreadable() {
  return new Refusal("The file cannot be read: it is a folder, or has changed since.", null);
}

async function isReadable(blob) {
  try {
    await blob.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}

/** POST for predictions. Returns them, the answer's text and the round trip in ms. */
export async function predict(request, signal) {
  const began = performance.now();
  const headers = request.type ? { "Content-Type": request.type } : {};
  const response = await ask(request.path, { method: "POST", body: request.body, headers, signal });
  const text = await response.text();
  const ms = performance.now() - began;
  const { predictions, model } = JSON.parse(text);
  return { predictions, model, text, ms, curl: request.curl };
}

/** A request for rows: objects of columns, or nested pixels. */
export function rowsRequest(instances) {
  const body = JSON.stringify({ instances });
  const type = "application/json";
  const curl = `curl ${address("predict")} -H ${quote(`Content-Type: ${type}`)} -d ${quote(body)}`;
  return { path: "predict", body, type, curl };
}

/** A request for a picture's file. example: its path, where it is one of the service's own. */
export function pictureRequest(blob, { name, example }) {
  const path = "predict/image";
  const curl = example
    ? `curl -s ${address(example)} | curl ${address(path)} --data-binary @-`
    : `curl ${address(path)} --data-binary ${quote(`@${name}`)}`;
  return { path, body: blob, type: blob.type, curl };
}

function address(path) {
  const authorization = token.get() ? ' -H "Authorization: Bearer $TOKEN"' : "";
  return quote(new URL(path, document.baseURI).href) + authorization;
}

/** For a shell; plain words stay as they are. */
function quote(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

// Trying a model of pictures: drop, paste, choose or draw one, or take a held-out one.

import { AnswerPanel, notice } from "./answer.js";
import { Refusal, ask as get, pictureRequest, predict, rowsRequest, token } from "./api.js";
import { Drawing } from "./draw.js";
import { dropZone, element } from "./dom.js";
import { Results } from "./results.js";

const MOST_FILES = 200;
// Beside names of their own, which a pasted picture has not.
const ENDINGS = { "image/jpeg": "jpg", "image/webp": "webp" };

/** Fill the page's places for it. */
export function tryImages(model, { input, answer, rows }) {
  const { examples, drawing, height, width } = model.input;
  const panel = new AnswerPanel(answer, model);
  const small = Math.max(height, width) <= 64;
  const takeFile = (file) => {
    const name = file.name || `picture.${ENDINGS[file.type] ?? "png"}`;
    pressed(null);
    panel.ask(pictureRequest(file, { name }), { picture: file, focus: true });
  };
  const take = (files) => (files.length === 1 ? takeFile(files[0]) : answerFiles(files, model, rows));

  const thumbnails = examples.map((example, place) => {
    const label = example.label === null ? null : model.labels[example.label];
    const name = label === null ? `Picture ${place + 1}` : `Picture ${place + 1}, labelled ${label}`;
    const image = element("img", { alt: name, width, height });
    image.classList.toggle("pixels", small);
    const thumbnail = element("button", { type: "button", className: "thumbnail", title: name }, image);
    thumbnail.setAttribute("aria-pressed", "false");
    const blob = once(async () => (await get(example.path)).blob());
    load(image, example.path, blob);
    thumbnail.addEventListener("click", async () => {
      pressed(thumbnail);
      try {
        const picture = await blob();
        const request = pictureRequest(picture, { example: example.path });
        panel.ask(request, { truth: example.label, picture });
      } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        panel.refuse(error);
      }
    });
    return thumbnail;
  });
  const pressed = (chosen) => {
    for (const one of thumbnails) one.setAttribute("aria-pressed", String(one === chosen));
  };

  const zone = dropZone({
    title: "Drop a picture here, paste one, or choose a file",
    detail: `PNG, JPEG or WebP of up to ${bytes(model.max_bytes)}; or several at once.`,
    accept: "image/png,image/jpeg,image/webp",
    multiple: true,
    take,
  });
  addEventListener("paste", (event) => {
    if (event.clipboardData?.files.length) {
      event.preventDefault();
      take([...event.clipboardData.files]);
    }
  });

  const canvas = drawing && new Drawing(model.input, (pixels) => {
    pressed(null);
    panel.ask(rowsRequest([pixels]));
  });
  input.append(
    element(
      "div", { className: "examples", role: "group", "aria-labelledby": "examples-title" },
      element("h3", { id: "examples-title" }, model.made_up ? "Made-up pictures" : "Held-out pictures"),
      element(
        "p", { className: "hint" },
        model.made_up
          ? "Made for trying: the real ones stay where they are."
          : "The model never learned from these.",
      ),
      element("div", { className: "thumbnails" }, ...thumbnails),
    ),
    ...(canvas ? [canvas.element] : []),
    zone,
  );
  panel.invite(
    canvas ? "Draw one, or take a picture: the answer comes here." : "Take a picture: the answer comes here.",
  );
}

/** One after the other, each the request that it would be alone. */
async function answerFiles(files, model, place) {
  const results = new Results(place, `${files.length} pictures`, ["picture"]);
  const taken = files.slice(0, MOST_FILES);
  let failed = false;
  for (const [number, file] of taken.entries()) {
    if (results.stopped || failed) break;
    const cells = [element("div", {}, thumbnail(file), file.name)];
    try {
      const answer = await predict(pictureRequest(file, { name: file.name }));
      results.answered(cells, answer.predictions[0]);
      notice(model, answer.model);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      results.refused(cells, error.message);
      failed = error.status === 0 || error.status === 401;
    }
    results.progress(number + 1, taken.length);
  }
  const more = files.length > taken.length;
  results.end(more ? [`This page takes ${MOST_FILES} at once; \`parityline score\` takes any number.`] : [], null);
}

/** A picture of what may be none. */
function thumbnail(file) {
  const image = element("img", { src: URL.createObjectURL(file), alt: "", className: "small" });
  image.addEventListener("load", () => URL.revokeObjectURL(image.src));
  image.addEventListener("error", () => (image.hidden = true));
  return image;
}

/** An image element of the service's own, which cannot send a token of itself. */
async function load(image, path, blob) {
  if (!token.get()) {
    image.src = path;
    return;
  }
  try {
    image.src = URL.createObjectURL(await blob());
  } catch {
    // Its words stand in its place.
  }
}

/** A function that asks once, and again after it has failed. */
function once(make) {
  let made = null;
  return () =>
    (made ??= make().catch((error) => {
      made = null;
      throw error;
    }));
}

function bytes(count) {
  return count >= 2 ** 20 ? `${Math.floor(count / 2 ** 20)} MB` : `${Math.floor(count / 2 ** 10)} KB`;
}

// A canvas to draw on, for models of small grayscale pictures.
//
// What is drawn is moved and scaled to where the things on the examples are, and averaged down to
// the model's own pixels; that is what is shown beside it, and what is sent.

import { button, element } from "./dom.js";

const SIDE = 280;
// Of one cell's pixels along each side, when shares of ink are counted.
const FINE = 8;

/** input: the model's, with its drawing. send: gets the pixels, [height][width] of 0 to 255. */
export class Drawing {
  #input;
  #send;
  #strokes = [];
  #canvas;
  #seen;
  #invite = element("span", { className: "board-invite", "aria-hidden": "true" }, "Draw here");
  #pending = null;
  element;

  constructor(input, send) {
    this.#input = input;
    this.#send = send;
    const { height, width } = input;
    const longer = Math.max(height, width);
    this.#canvas = element("canvas", {
      width: Math.round((SIDE * width) / longer),
      height: Math.round((SIDE * height) / longer),
      className: "drawing", role: "img",
      "aria-label": "Drawing area, for a mouse, a pen or a finger. With a keyboard, take a picture above.",
    });
    this.#seen = element("canvas", {
      width, height, className: "seen pixels", role: "img", "aria-label": "The drawing as the model sees it",
    });
    const clear = button("Clear", () => {
      this.#strokes = [];
      this.#paint();
    });
    this.element = element(
      "div", { className: "draw", role: "group", "aria-labelledby": "draw-title" },
      element("h3", { id: "draw-title" }, "Draw one"),
      element(
        "div", { className: "draw-areas" },
        element(
          "div", {},
          element("div", { className: "board" }, this.#canvas, this.#invite),
          element("div", { className: "actions" }, clear),
        ),
        element(
          "figure", {}, this.#seen,
          element("figcaption", {}, "As the model sees it: moved and scaled as its examples are"),
        ),
      ),
    );
    this.#invite.style.color = grey(input.drawing.ink);
    this.#listen();
    this.#paint();
  }

  #listen() {
    const canvas = this.#canvas;
    const point = (event) => {
      const box = canvas.getBoundingClientRect();
      return [
        ((event.clientX - box.left) * canvas.width) / box.width,
        ((event.clientY - box.top) * canvas.height) / box.height,
      ];
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !event.isPrimary) return;
      event.preventDefault();
      canvas.setPointerCapture(event.pointerId);
      this.#strokes.push([point(event)]);
      this.#paint();
    });
    canvas.addEventListener("pointermove", (event) => {
      // A second finger draws nothing, though the browser lets it have the canvas.
      if (!event.isPrimary || !canvas.hasPointerCapture(event.pointerId)) return;
      const passed = event.getCoalescedEvents?.() ?? [];
      this.#strokes.at(-1).push(...(passed.length ? passed : [event]).map(point));
      this.#paint();
    });
    // Lifted, or taken away by the browser.
    canvas.addEventListener("lostpointercapture", () => {
      // A stroke more may follow at once.
      clearTimeout(this.#pending);
      this.#pending = setTimeout(() => this.#strokes.length && this.#send(this.#pixels()), 150);
    });
  }

  #paint() {
    this.#invite.hidden = this.#strokes.length > 0;
    const context = this.#canvas.getContext("2d");
    context.fillStyle = grey(this.#input.drawing.background);
    context.fillRect(0, 0, this.#canvas.width, this.#canvas.height);
    this.#stroke(context, grey(this.#input.drawing.ink));
    const seen = this.#seen.getContext("2d");
    const pixels = this.#pixels();
    const image = seen.createImageData(this.#input.width, this.#input.height);
    pixels.flat().forEach((value, at) => image.data.set([value, value, value, 255], 4 * at));
    seen.putImageData(image, 0, 0);
  }

  /** The strokes as lines, as thick as a pixel or two of the model's. */
  #stroke(context, colour, thickness = this.#thickness()) {
    context.strokeStyle = colour;
    context.lineWidth = thickness;
    context.lineCap = context.lineJoin = "round";
    for (const stroke of this.#strokes) {
      context.beginPath();
      context.moveTo(...stroke[0]);
      // A dot is a line of no length.
      for (const point of stroke.length > 1 ? stroke.slice(1) : stroke) context.lineTo(...point);
      context.stroke();
    }
  }

  #thickness() {
    const { height, width } = this.#input;
    return SIDE * Math.max(1.5 / Math.max(height, width), 0.085);
  }

  /** Pixels at the model's size, [height][width], 0 to 255. */
  #pixels() {
    const { height, width, drawing } = this.#input;
    const { background, ink } = drawing;
    const fine = element("canvas", { width: width * FINE, height: height * FINE });
    const context = fine.getContext("2d", { willReadFrequently: true });
    if (this.#strokes.length) {
      this.#place(context, fine);
      this.#stroke(context, "#000");
    }
    const { data } = context.getImageData(0, 0, fine.width, fine.height);
    return Array.from({ length: height }, (_, row) =>
      Array.from({ length: width }, (_, column) => {
        let share = 0;
        for (let y = row * FINE; y < (row + 1) * FINE; y++) {
          for (let x = column * FINE; x < (column + 1) * FINE; x++) {
            share += data[4 * (y * fine.width + x) + 3];
          }
        }
        return Math.round(background + ((ink - background) * share) / (255 * FINE * FINE));
      }));
  }

  /** Map the drawn part onto where the examples have theirs. */
  #place(context, fine) {
    const { drawing } = this.#input;
    const points = this.#strokes.flat();
    const half = this.#thickness() / 2;
    const [xs, ys] = [points.map(([x]) => x), points.map(([, y]) => y)];
    const left = Math.min(...xs) - half;
    const top = Math.min(...ys) - half;
    const [wide, high] = [Math.max(...xs) + half - left, Math.max(...ys) + half - top];
    const scale = Math.min((drawing.width * fine.width) / wide, (drawing.height * fine.height) / high);
    // A dot is not blown up to a disc.
    const most = (3 * fine.width) / this.#canvas.width;
    const used = Math.min(scale, most);
    context.translate(drawing.left * fine.width, drawing.top * fine.height);
    context.scale(used, used);
    context.translate(-(left + wide / 2), -(top + high / 2));
  }
}

function grey(value) {
  return `rgb(${value} ${value} ${value})`;
}

// A picture to begin from, and what is drawn on it: a mask over it, or a scribble on black. Drawn with a pointer,
// or with the arrow keys, Space lowering and lifting the brush.

const LONGEST = 1024;
const BLANK = 256;
const MARK = "#ffffff";

export class Easel {
  /** `changed` is called when there is another picture or another stroke. */
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.changed = changed;
    this.kind = "picture";
    this.brush = 24;
    this.marks = document.createElement("canvas");
    this.picture = undefined;
    this.isMarked = false;
    this.resize(BLANK, BLANK);
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (this.last = undefined));
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("focus", () => this.show());
    canvas.addEventListener("blur", () => {
      this.cursor = undefined;
      this.lowered = false;
      this.show();
    });
  }

  get draws() {
    return this.kind === "mask" || this.kind === "scribble";
  }

  /** Whether there is something to send. */
  get isReady() {
    if (this.kind === "scribble") return this.isMarked || this.picture !== undefined;
    if (this.kind === "mask") return this.picture !== undefined && this.isMarked;
    return this.picture !== undefined;
  }

  /** "picture", "mask" or "scribble"; strokes of another kind go. */
  use(kind) {
    if (kind === this.kind) return;
    this.kind = kind;
    this.clear();
  }

  /** Takes a file or blob; throws where the browser cannot read it. */
  async take(blob) {
    const bitmap = await createImageBitmap(blob);
    const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
    this.resize(Math.max(1, Math.round(bitmap.width * scale)), Math.max(1, Math.round(bitmap.height * scale)));
    this.picture = document.createElement("canvas");
    [this.picture.width, this.picture.height] = [this.canvas.width, this.canvas.height];
    this.picture.getContext("2d").drawImage(bitmap, 0, 0, this.canvas.width, this.canvas.height);
    bitmap.close();
    this.clear();
  }

  /** Takes the picture away; a scribble begins on a blank ground. */
  drop() {
    this.picture = undefined;
    this.resize(BLANK, BLANK);
    this.clear();
  }

  resize(width, height) {
    for (const canvas of [this.canvas, this.marks]) [canvas.width, canvas.height] = [width, height];
    this.canvas.style.setProperty("--wide", width / height);
  }

  clear() {
    this.marks.getContext("2d").clearRect(0, 0, this.marks.width, this.marks.height);
    this.isMarked = false;
    this.show();
    this.changed();
  }

  show() {
    const { canvas } = this;
    const context = canvas.getContext("2d");
    const { width, height } = canvas;
    const blank = this.kind === "scribble" && (this.isMarked || !this.picture);
    context.globalAlpha = 1;
    context.fillStyle = "#000000";
    context.fillRect(0, 0, width, height);
    if (this.picture && !blank) context.drawImage(this.picture, 0, 0);
    if (this.draws) {
      context.globalAlpha = this.kind === "mask" ? 0.75 : 1;
      context.drawImage(this.marks, 0, 0);
    }
    if (this.cursor && this.draws) {
      context.globalAlpha = 1;
      context.lineWidth = Math.max(1, width / 200);
      context.strokeStyle = this.lowered ? "#ff7b72" : "#2fd0b8";
      context.beginPath();
      context.arc(this.cursor.x, this.cursor.y, this.radius(), 0, 2 * Math.PI);
      context.stroke();
    }
  }

  /** The brush is as wide on every picture, as a share of its shorter side. */
  radius() {
    return Math.max(0.5, (Math.min(this.canvas.width, this.canvas.height) * this.brush) / 512);
  }

  begin(event) {
    if (!this.draws || (this.kind === "mask" && !this.picture)) return;
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.last = this.at(event);
    this.stroke(this.last, this.last);
  }

  move(event) {
    if (!this.last) return;
    const now = this.at(event);
    this.stroke(this.last, now);
    this.last = now;
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) / box.width) * this.canvas.width,
      y: ((event.clientY - box.top) / box.height) * this.canvas.height,
    };
  }

  key(event) {
    if (!this.draws) return;
    const step = Math.max(1, Math.min(this.canvas.width, this.canvas.height) / 24);
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const here = this.cursor ?? { x: this.canvas.width / 2, y: this.canvas.height / 2 };
    if (event.key === " ") {
      event.preventDefault();
      this.cursor = here;
      this.lowered = !this.lowered;
      if (this.lowered) this.stroke(here, here);
      else this.show();
    } else if (moves[event.key]) {
      event.preventDefault();
      const [x, y] = moves[event.key];
      const inside = (value, most) => Math.min(Math.max(value, 0), most);
      this.cursor = { x: inside(here.x + x, this.canvas.width), y: inside(here.y + y, this.canvas.height) };
      if (this.lowered) this.stroke(here, this.cursor);
      else this.show();
    }
  }

  stroke(from, to) {
    const context = this.marks.getContext("2d");
    context.strokeStyle = MARK;
    context.lineCap = "round";
    context.lineJoin = "round";
    context.lineWidth = 2 * this.radius();
    context.beginPath();
    context.moveTo(from.x, from.y);
    // A point is a line of no length, which some browsers do not draw.
    context.lineTo(to.x + 0.01, to.y);
    context.stroke();
    this.isMarked = true;
    this.show();
    this.changed();
  }

  /** The picture as base64. */
  async pictureText() {
    return text(this.picture);
  }

  /** The strokes, white on black, as base64. */
  async marksText() {
    const flat = document.createElement("canvas");
    [flat.width, flat.height] = [this.marks.width, this.marks.height];
    const context = flat.getContext("2d");
    context.fillRect(0, 0, flat.width, flat.height);
    context.drawImage(this.marks, 0, 0);
    return text(flat);
  }
}

async function text(canvas) {
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let characters = "";
  for (let at = 0; at < bytes.length; at += 8192) characters += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(characters);
}

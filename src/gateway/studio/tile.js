// One picture on the stage: noise that clears with the steps, then the picture itself.

const GRAIN = 80;

export class Tile {
  constructor(width, height) {
    this.share = 0;
    this.finished = false;
    this.element = document.createElement("button");
    this.element.type = "button";
    this.element.className = "tile";
    this.element.disabled = true;
    this.element.style.setProperty("--ratio", `${width} / ${height}`);
    this.canvas = document.createElement("canvas");
    this.canvas.width = GRAIN;
    this.canvas.height = Math.max(1, Math.round((GRAIN * height) / width));
    this.canvas.setAttribute("aria-hidden", "true");
    this.element.append(this.canvas);
    this.moving = !matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.draw();
  }

  progress(share) {
    this.share = share;
    this.element.style.setProperty("--noise", 1 - share * 0.75);
    if (!this.moving) this.draw();
  }

  /** Draws fresh grain, and again until the picture is there. */
  draw() {
    clearTimeout(this.timer);
    if (this.finished) return;
    const context = this.canvas.getContext("2d");
    const { width, height } = this.canvas;
    const grain = context.createImageData(width, height);
    const keep = 1 - this.share;
    for (let i = 0; i < grain.data.length; i += 4) {
      const x = (i / 4) % width;
      const y = Math.floor(i / 4 / width);
      const wave = Math.sin(x / 15 + this.share * 4) + Math.cos(y / 12 - this.share * 3);
      for (let channel = 0; channel < 3; channel += 1) {
        const calm = [46, 120, 132][channel] + wave * [18, 26, 30][channel];
        grain.data[i + channel] = calm + (Math.random() - 0.5) * 190 * keep;
      }
      grain.data[i + 3] = 255;
    }
    context.putImageData(grain, 0, 0);
    if (this.moving) this.timer = setTimeout(() => this.draw(), 90);
  }

  completed(blob, prompt) {
    this.share = 1;
    this.finished = true;
    clearTimeout(this.timer);
    const image = document.createElement("img");
    const url = URL.createObjectURL(blob);
    image.onload = () => URL.revokeObjectURL(url);
    image.src = url;
    image.alt = prompt;
    this.element.append(image);
    this.element.disabled = false;
    this.element.classList.add("done");
    this.element.setAttribute("aria-label", `Details of ${prompt}`);
  }

  blocked() {
    this.share = 1;
    this.rest();
    const note = document.createElement("span");
    note.textContent = "Not safe for work: it stays with the miner, and costs nothing.";
    this.element.append(note);
    this.element.classList.add("blocked");
  }

  /** Ends the movement. */
  rest() {
    this.moving = false;
    clearTimeout(this.timer);
  }
}

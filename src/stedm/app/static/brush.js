// A layout on a canvas: class indices that a brush changes, with undo, mouse, pen, touch and keys.

import { drawMap } from "./common.js";

export const UNKNOWN = 255;
const MOST_UNDO = 50;

export class Brush {
  constructor(canvas, ring, side, colours, onChange) {
    Object.assign(this, { canvas, ring, side, colours, onChange, radius: 3, colour: Math.min(1, colours.length - 1) });
    this.values = new Uint8Array(side * side);
    this.undos = [];
    this.at = [side / 2, side / 2];
    this.draw();
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", () => this.end());
    canvas.addEventListener("pointercancel", () => this.end());
    canvas.addEventListener("pointerleave", () => { if (!this.drawing) this.ring.hidden = true; });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => { this.ring.hidden = true; });
  }

  set(values) {
    this.remember();
    this.values = Uint8Array.from(values);
    this.draw();
  }

  fill() {
    this.remember();
    this.values.fill(this.colour);
    this.changed();
  }

  undo() {
    const before = this.undos.pop();
    if (!before) return;
    this.values = before;
    this.changed();
  }

  remember() {
    this.undos.push(this.values.slice());
    if (this.undos.length > MOST_UNDO) this.undos.shift();
  }

  changed() {
    this.draw();
    this.onChange();
  }

  draw() {
    drawMap(this.canvas, { width: this.side, height: this.side, values: this.values }, this.colours);
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width * this.side, (event.clientY - box.top) / box.height * this.side];
  }

  begin(event) {
    if (event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.remember();
    this.drawing = true;
    this.at = this.place(event);
    this.dab(...this.at);
    this.draw();
  }

  move(event) {
    const [x, y] = this.place(event);
    if (this.drawing) {
      const [fromX, fromY] = this.at;
      const steps = Math.max(1, Math.ceil(2 * Math.hypot(x - fromX, y - fromY) / this.radius));
      for (let i = 1; i <= steps; i++) this.dab(fromX + (x - fromX) * i / steps, fromY + (y - fromY) * i / steps);
      this.draw();
    }
    this.at = [x, y];
    this.showRing();
  }

  end() {
    if (!this.drawing) return;
    this.drawing = false;
    this.onChange();
  }

  key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step && !event.ctrlKey) {
      const by = event.shiftKey ? 8 : 2;
      this.at = this.at.map((value, axis) => Math.min(this.side, Math.max(0, value + by * step[axis])));
    } else if (event.key === " ") {
      this.remember();
      this.dab(...this.at);
      this.changed();
    } else return;
    event.preventDefault();
    this.showRing();
  }

  dab(x, y) {
    const r = this.radius;
    for (let row = Math.max(0, Math.floor(y - r)); row < Math.min(this.side, y + r); row++) {
      for (let column = Math.max(0, Math.floor(x - r)); column < Math.min(this.side, x + r); column++) {
        if ((row + 0.5 - y) ** 2 + (column + 0.5 - x) ** 2 <= Math.max(r * r, 0.25)) this.values[row * this.side + column] = this.colour;
      }
    }
  }

  showRing() {
    const unit = this.canvas.clientWidth / this.side;
    Object.assign(this.ring.style, {
      left: `${(this.at[0] - this.radius) * unit}px`, top: `${(this.at[1] - this.radius) * unit}px`,
      width: `${2 * this.radius * unit}px`, height: `${2 * this.radius * unit}px`,
    });
    this.ring.hidden = false;
  }
}

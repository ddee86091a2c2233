// A tiled viewer: tiles of 256 px at zooms that halve, an overlay of the same tiles, drag, wheel, touch and keys.

const TILE = 256, MOST_TILES = 500;

export class Viewer {
  constructor(canvas, onMove = () => {}) {
    Object.assign(this, { canvas, onMove, slide: null, tiles: new Map(), overlay: null, opacity: 0.5, pointers: new Map() });
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); this.pointers.set(event.pointerId, this.place(event)); });
    canvas.addEventListener("pointermove", (event) => this.drag(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.pointers.delete(event.pointerId));
    canvas.addEventListener("wheel", (event) => { event.preventDefault(); this.zoomAt(...this.place(event), Math.exp(-event.deltaY / 300)); }, { passive: false });
    canvas.addEventListener("dblclick", (event) => this.zoomAt(...this.place(event), 2));
    canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.resized()).observe(canvas);
  }

  // `slide`: width, height, mpp, zooms, tile(zoom, x, y) -> address.
  open(slide) {
    Object.assign(this, { slide, overlay: null });
    this.tiles.clear();
    this.fit();
  }

  // `address(zoom, x, y)`, or null.
  cover(address) {
    for (const key of [...this.tiles.keys()].filter((key) => key.startsWith("overlay"))) this.tiles.delete(key);
    this.overlay = address;
    this.draw();
  }

  resized() {
    const ratio = devicePixelRatio || 1, { clientWidth, clientHeight } = this.canvas;
    this.canvas.width = Math.max(1, clientWidth * ratio);
    this.canvas.height = Math.max(1, clientHeight * ratio);
    if (this.slide && !this.moved) this.fit();
    else this.draw();
  }

  // Screen pixels (of the device) to one of the slide, and where the slide's corner lies on the screen.
  fit() {
    if (!this.slide) return;
    const { width, height } = this.canvas;
    this.scale = 0.96 * Math.min(width / this.slide.width, height / this.slide.height);
    this.x = (width - this.slide.width * this.scale) / 2;
    this.y = (height - this.slide.height * this.scale) / 2;
    this.moved = false;
    this.draw();
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect(), ratio = this.canvas.width / box.width;
    return [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio];
  }

  drag(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before || !this.slide) return;
    const now = this.place(event);
    if (this.pointers.size === 2) {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
      const distance = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]);
      this.zoomAt(...other, distance(now) / Math.max(1, distance(before)));
    } else this.moveBy(now[0] - before[0], now[1] - before[1]);
    this.pointers.set(event.pointerId, now);
  }

  moveBy(x, y) {
    const margin = 60, { width, height } = this.canvas;
    this.x = Math.min(width - margin, Math.max(margin - this.slide.width * this.scale, this.x + x));
    this.y = Math.min(height - margin, Math.max(margin - this.slide.height * this.scale, this.y + y));
    this.moved = true;
    this.draw();
  }

  zoomAt(x, y, factor) {
    if (!this.slide) return;
    const least = 0.5 * Math.min(this.canvas.width / this.slide.width, this.canvas.height / this.slide.height);
    const scale = Math.min(16, Math.max(least, this.scale * factor));
    this.x = x - (x - this.x) * scale / this.scale;
    this.y = y - (y - this.y) * scale / this.scale;
    this.scale = scale;
    this.moveBy(0, 0);
  }

  zoom(factor) {
    this.zoomAt(this.canvas.width / 2, this.canvas.height / 2, factor);
  }

  key(event) {
    const step = this.canvas.width / 8;
    const by = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] }[event.key];
    if (!this.slide || event.ctrlKey || event.altKey) return;
    if (by) this.moveBy(...by);
    else if (event.key === "+" || event.key === "=") this.zoom(1.5);
    else if (event.key === "-") this.zoom(1 / 1.5);
    else if (event.key === "0") this.fit();
    else return;
    event.preventDefault();
  }

  draw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => { this.waiting = null; this.paint(); });
  }

  paint() {
    const { canvas, slide } = this, context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!slide) return;
    const zoom = Math.min(slide.zooms - 1, Math.max(0, Math.floor(Math.log2(1 / this.scale) + 0.3)));
    context.imageSmoothingEnabled = this.scale < 2;
    this.pending = 0;
    // Coarse tiles stand in until the fine ones are there.
    for (const level of [slide.zooms - 1, Math.min(slide.zooms - 1, zoom + 2), zoom]) this.layer(context, "slide", slide.tile, level);
    if (this.overlay && this.opacity > 0) {
      context.globalAlpha = this.opacity;
      context.imageSmoothingEnabled = false;
      this.layer(context, "overlay", this.overlay, zoom);
      context.globalAlpha = 1;
    }
    canvas.dataset.pending = this.pending;
    this.onMove(this.scale);
  }

  layer(context, kind, address, zoom) {
    const { slide, scale, canvas } = this, side = TILE * 2 ** zoom;
    const last = (length) => Math.ceil(length / side) - 1;
    const range = (from, to, length) => [Math.max(0, Math.floor(from / side)), Math.min(last(length), Math.floor(to / side))];
    const [left, right] = range(-this.x / scale, (canvas.width - this.x) / scale, slide.width);
    const [top, bottom] = range(-this.y / scale, (canvas.height - this.y) / scale, slide.height);
    for (let row = top; row <= bottom; row++) {
      for (let column = left; column <= right; column++) {
        const tile = this.tile(`${kind} ${zoom} ${column} ${row}`, () => address(zoom, column, row));
        if (!tile) continue;
        // Only what lies on the slide: tiles at its edge hang over.
        const width = Math.min(side, slide.width - column * side), height = Math.min(side, slide.height - row * side);
        const x = Math.round(this.x + column * side * scale), y = Math.round(this.y + row * side * scale);
        const endX = Math.round(this.x + (column * side + width) * scale), endY = Math.round(this.y + (row * side + height) * scale);
        context.drawImage(tile, 0, 0, TILE * width / side, TILE * height / side, x, y, endX - x, endY - y);
      }
    }
  }

  tile(key, address) {
    const known = this.tiles.get(key);
    if (known) {
      this.tiles.delete(key);
      this.tiles.set(key, known);
      if (known.pending) this.pending += 1;
      return known.complete && known.naturalWidth ? known : null;
    }
    const image = new Image();
    image.pending = true;
    image.onload = image.onerror = () => { image.pending = false; this.draw(); };
    image.src = address();
    this.tiles.set(key, image);
    this.pending += 1;
    if (this.tiles.size > MOST_TILES) this.tiles.delete(this.tiles.keys().next().value);
    return null;
  }
}

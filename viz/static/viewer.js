"use strict";
/* The attention viewer: VLBertViewer.mount(element, capture) for a capture of viz/capture.py.

   A slot is one position of the encoder's sequence. The viewer shows one matrix [size, size] of weights at a time: of one
   head, the mean over the heads of a layer, or the rollout up to a layer (Abnar and Zuidema 2020, eq. 1: the product of
   the layers' mean attention, each averaged with the identity). */
const VLBertViewer = (() => {
  const SHARES = [["text", "image"], ["image", "text"], ["text", "text"], ["image", "image"]];
  const MODES = { head: "one head", mean: "mean of the layer's heads", rollout: "rollout up to the layer" };
  const CIVIDIS = [[0, 32, 76], [66, 77, 108], [124, 123, 120], [187, 175, 113], [255, 234, 70]];
  const MAX_PINS = 6;
  const SVG = "http://www.w3.org/2000/svg";

  function decode(text) {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    const view = new DataView(bytes.buffer), out = new Float32Array(bytes.length / 2);
    for (let i = 0; i < out.length; i++) out[i] = view.getUint16(2 * i, true) / 65535;
    return out;
  }

  /* The weights, independent of the page. */
  class Weights {
    constructor(capture) {
      Object.assign(this, { layers: capture.layers, heads: capture.heads, size: capture.size });
      this.values = decode(capture.attention);
      this.kept = new Map();
      const of = (...kinds) => capture.slots.flatMap((s, i) => kinds.includes(s.kind) ? [i] : []);
      this.groups = { text: of("word"), image: of("region", "image"), special: of("special", "end") };
    }
    head(layer, head) {
      const n = this.size * this.size, start = (layer * this.heads + head) * n;
      return this.values.subarray(start, start + n);
    }
    mean(layer) {
      return this.remember(`mean ${layer}`, () => {
        const out = new Float32Array(this.size * this.size);
        for (let h = 0; h < this.heads; h++) this.head(layer, h).forEach((w, i) => { out[i] += w / this.heads; });
        return out;
      });
    }
    rollout(layer) {
      return this.remember(`rollout ${layer}`, () => {
        const n = this.size, mean = this.mean(layer), mixed = new Float32Array(n * n);
        for (let i = 0; i < n; i++)
          for (let j = 0; j < n; j++) mixed[i * n + j] = (mean[i * n + j] + (i === j ? 1 : 0)) / 2;
        if (layer === 0) return mixed;
        const before = this.rollout(layer - 1), out = new Float32Array(n * n);
        for (let i = 0; i < n; i++)
          for (let k = 0; k < n; k++)
            for (let j = 0, w = mixed[i * n + k]; j < n; j++) out[i * n + j] += w * before[k * n + j];
        return out;
      });
    }
    matrix(state) {
      return state.mode === "head" ? this.head(state.layer, state.head) : this[state.mode](state.layer);
    }
    /* The mean share of attention that slots of one group give to slots of another. */
    share(matrix, from, to) {
      const sources = this.groups[from], targets = this.groups[to];
      if (!sources.length) return 0;
      let sum = 0;
      for (const i of sources) for (const j of targets) sum += matrix[i * this.size + j];
      return sum / sources.length;
    }
    /* The weights of a slot to all slots, or of all slots to it. */
    of(state, slot) {
      const matrix = this.matrix(state), n = this.size;
      return Array.from({ length: n }, (_, i) => state.direction === "to" ? matrix[slot * n + i] : matrix[i * n + slot]);
    }
    remember(key, make) {
      if (!this.kept.has(key)) this.kept.set(key, make());
      return this.kept.get(key);
    }
  }

  function color(x) {
    const at = Math.min(Math.max(x, 0), 1) * (CIVIDIS.length - 1), i = Math.min(Math.floor(at), CIVIDIS.length - 2);
    return `rgb(${CIVIDIS[i].map((c, k) => Math.round(c + (at - i) * (CIVIDIS[i + 1][k] - c))).join(",")})`;
  }

  function element(name, options = {}, ...children) {
    const node = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
    for (const [key, value] of Object.entries(options)) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== null && value !== undefined) node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  }

  const ruler = document.createElement("canvas").getContext("2d");

  /* Width of a text on a box, with its outline. */
  function textWidth(text, font) {
    ruler.font = "650 100px system-ui, sans-serif";
    return (ruler.measureText(text).width / 100 + .2) * font;
  }

  /* The texts on boxes: [{ box, name, label }] to [{ x, y, text, nameX, nameY }] in pixels of the image. Every box
     has its name; the label follows it where that covers no other text, at the top of the box or at its bottom. Large
     boxes come first. nameX, nameY: the place of the name alone. */
  function placeTexts(items, width, height, font) {
    const spot = (x, y, text) => ({ x, y, text, right: x + textWidth(text, font), top: y - .9 * font, bottom: y + .3 * font });
    const apart = (a, b) => a.right <= b.x || b.right <= a.x || a.bottom <= b.top || b.bottom <= a.top;
    const spots = items.map(({ box: [x1, y1], name }) => spot(x1 + font * .25, Math.min(y1 + font, height - font * .3), name));
    const names = [...spots];
    const area = ({ box: [x1, y1, x2, y2] }) => (x2 - x1) * (y2 - y1);
    const order = items.map((_, i) => i).sort((a, b) => area(items[b]) - area(items[a]));
    for (const i of order.filter(i => items[i].label)) {
      const { box: [, , , y2], name, label } = items[i], at = spots[i], text = `${name} ${label}`;
      const long = y => { const s = spot(at.x, y, text), over = Math.max(s.right - width, 0); return spot(s.x - over, y, text); };
      const fits = s => s.x >= 0 && spots.every((other, k) => k === i || apart(s, other));
      spots[i] = [long(at.y), long(Math.min(y2, height) - font * .3)].find(fits) ?? at;
    }
    return spots.map((s, i) => ({ x: s.x, y: s.y, text: s.text, nameX: names[i].x, nameY: names[i].y }));
  }

  /* Size of the texts on boxes, in pixels of the image. They are larger, in relation to the image, on a narrow screen. */
  function textSize(width, height) { return Math.max(width, height) / (window.innerWidth < 600 ? 28 : 40); }

  const percent = w => `${(100 * w).toFixed(w < 0.0995 ? 1 : 0)} %`;

  class Viewer {
    constructor(root, capture) {
      Object.assign(this, { root, capture, weights: new Weights(capture), pins: [], hovered: null, selected: null });
      this.state = { mode: "head", layer: capture.layers - 1, head: 0, direction: "to" };
      this.share = 0;
      this.scale = "relative";
      root.classList.add("viewer");
      root.replaceChildren(this.header(), this.left(), this.right());
      this.pinArea = element("div", { class: "pins", "aria-label": "pinned" });
      root.append(this.pinArea, this.footer());
      root.addEventListener("keydown", e => { if (e.key === "Escape") { this.selected = null; this.update(); } });
      this.update();
    }

    /* ---------------------------------------------------------------- parts of the page */

    header() {
      const c = this.capture;
      const about = [c.task, c.model, `${c.layers} layers × ${c.heads} heads, numbered from 0`, `${c.size} slots`];
      return element("header", {}, element("h2", {}, c.title || "Attention"),
        element("div", { class: "dim" }, about.filter(Boolean).join(" · ")));
    }

    left() {
      this.boxes = [];
      const svg = this.drawing(this.capture.image.src, this.boxes, true);
      this.words = this.capture.slots.flatMap((slot, i) => slot.box === null ? [this.word(slot, i, "button")] : []);
      const strip = element("div", { class: "words", role: "group", "aria-label": "words of the sequence" },
        ...this.words.map(w => w.node));
      this.roving(this.words.map(w => w.node));
      this.roving(this.boxes.map(b => b.node));
      this.readout = element("p", { class: "readout", role: "status", "aria-live": "polite" });
      return element("div", {}, element("div", { class: "image" }, svg), strip, this.readout);
    }

    drawing(src, boxes, live) {
      const { width, height } = this.capture.image, font = live ? textSize(width, height) : Math.max(width, height) / 34;
      const svg = element("svg:svg", { viewBox: `0 0 ${width} ${height}`, role: "group",
        "aria-label": "image with its boxes" });
      if (src) svg.append(element("svg:image", { href: src, width, height, preserveAspectRatio: "none" }));
      // Large boxes first, so that small ones lie on top and can be reached.
      const area = i => { const [x1, y1, x2, y2] = this.capture.boxes[this.capture.slots[i].box]; return (x2 - x1) * (y2 - y1); };
      const slots = this.capture.slots.flatMap((s, i) => s.box === null ? [] : [i]).sort((a, b) => area(b) - area(a));
      const texts = placeTexts(slots.map(i => ({ box: this.capture.boxes[this.capture.slots[i].box],
        name: this.boxName(i), label: live ? this.boxLabel(i) : "" })), width, height, font);
      slots.forEach((i, k) => {
        const slot = this.capture.slots[i], [x1, y1, x2, y2] = this.capture.boxes[slot.box];
        const place = { x: x1, y: y1, width: Math.max(x2 - x1, 1), height: Math.max(y2 - y1, 1) };
        const face = element("svg:rect", { ...place, class: "face" });
        const label = element("svg:text", { "font-size": font, "stroke-width": font / 5 });
        const name = slot.kind === "image" ? "whole image" : `box ${slot.text} ${this.boxLabel(i)}`.trim();
        const node = element("svg:g", live ? { class: "box", tabindex: -1, role: "button", "data-slot": i,
          "aria-label": name, ...this.handlers(i) } : { class: "box", "data-slot": i },
          element("svg:rect", { ...place, class: "edge" }), face);
        boxes.push({ node, face, label, text: texts[k], slot: i });
        svg.append(node);
      });
      boxes.sort((a, b) => a.slot - b.slot);
      svg.append(element("svg:g", { class: "texts", "aria-hidden": "true" }, ...boxes.map(b => b.label)));  // above all edges
      return svg;
    }

    word(slot, i, tag) {
      const number = element("small"), live = tag === "button";
      const node = element(tag, { class: `word ${slot.kind === "word" ? "" : "special"}`, "data-slot": i,
        ...(live ? { type: "button", tabindex: -1, ...this.handlers(i) } : {}) }, slot.text, number);
      return { node, number, slot: i };
    }

    handlers(slot) {
      const show = () => { this.hovered = slot; this.update(); };
      const leave = () => { if (this.hovered === slot) { this.hovered = null; this.update(); } };
      return {
        onpointerenter: show, onfocus: show, onpointerleave: leave, onblur: leave,
        onclick: () => { this.selected = this.selected === slot ? null : slot; this.update(); },
        onkeydown: e => {
          if (e.key === "p") this.pin(slot);
          else if ((e.key === "Enter" || e.key === " ") && !(e.currentTarget instanceof HTMLButtonElement)) {
            e.preventDefault();
            this.selected = this.selected === slot ? null : slot;
            this.update();
          }
        },
      };
    }

    right() {
      const toggle = (group, value, label) => element("button", { type: "button", "data-set": `${group}:${value}`,
        onclick: () => { this.state[group] = value; this.update(); } }, label);
      const modes = Object.entries(MODES).map(([value, label]) => toggle("mode", value, label));
      const directions = [toggle("direction", "to", "attends to"), toggle("direction", "from", "attended by")];
      const shares = element("select", { "aria-label": "colour of the grid",
        onchange: e => { this.share = Number(e.target.value); this.update(); } },
        ...SHARES.map(([a, b], i) => element("option", { value: i }, `${a} → ${b}`)));
      const scale = element("select", { "aria-label": "brightness",
        onchange: e => { this.scale = e.target.value; this.update(); } },
        element("option", { value: "relative" }, "brightest = strongest"), element("option", { value: "raw" }, "raw weights"));
      this.toggles = [...modes, ...directions];
      const pin = element("button", { type: "button", class: "pin-button", onclick: () => this.pin(this.focus()) }, "Pin this view");
      return element("div", {},
        element("div", { class: "controls" }, ...modes), element("div", { class: "controls" }, ...directions, scale, pin),
        element("h3", {}, "Layers × heads"),
        element("div", { class: "controls" }, element("label", {}, "coloured by the share of ", shares)),
        this.grid(), this.legend());
    }

    grid() {
      const { layers, heads } = this.capture;
      const grid = element("div", { class: "grid", role: "grid", "aria-label": "layers by heads",
        style: `grid-template-columns: 1.6em repeat(${heads}, minmax(8px, 1fr))`, onkeydown: e => this.move(e) });
      grid.append(element("span", { class: "axis" }));
      for (let h = 0; h < heads; h++) grid.append(element("span", { class: "axis" }, String(h)));
      this.cells = [];
      for (let l = 0; l < layers; l++) {
        grid.append(element("span", { class: "axis" }, String(l)));
        for (let h = 0; h < heads; h++) {
          const cell = element("button", { type: "button", class: "cell", role: "gridcell", tabindex: -1,
            "data-layer": l, "data-head": h, onclick: () => this.choose(l, h) });
          this.cells.push(cell);
          grid.append(cell);
        }
      }
      return grid;
    }

    legend() {
      this.low = element("span", {}, "0 %");
      this.high = element("span");
      const bar = element("i", { style: `background: linear-gradient(to right, ${[0, .25, .5, .75, 1].map(color).join(",")})` });
      return element("div", { class: "legend" }, this.low, bar, this.high);
    }

    footer() {
      return element("footer", {},
        "Attention says where a layer mixed information from, not why the model answers as it does: weights of one head ",
        "can change without any change of the answer, later layers mix slots that are mixtures already, and what the ",
        "residual path carries is not shown. To see what an answer depends on, take a word or a box away and ask again. ",
        element("span", {}, "Keys: "), element("kbd", {}, "Tab"), " between words, boxes and grid, ",
        element("kbd", {}, "← → ↑ ↓"), " inside, ", element("kbd", {}, "Enter"), " keeps a slot, ",
        element("kbd", {}, "p"), " pins, ", element("kbd", {}, "Esc"), " lets go.");
    }

    /* ---------------------------------------------------------------- user input */

    /* Arrow keys move the focus inside a group. One member of the group is in the tab order. */
    roving(nodes) {
      nodes.forEach((node, i) => {
        node.setAttribute("tabindex", i === 0 ? 0 : -1);
        node.addEventListener("keydown", e => {
          const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[e.key];
          if (!step) return;
          e.preventDefault();
          const next = nodes[(i + step + nodes.length) % nodes.length];
          nodes.forEach(n => n.setAttribute("tabindex", n === next ? 0 : -1));
          next.focus();
        });
      });
    }

    move(event) {
      const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
      if (!step) return;
      event.preventDefault();
      const clamp = (x, n) => Math.min(Math.max(x, 0), n - 1);
      this.choose(clamp(this.state.layer + step[0], this.capture.layers), clamp(this.state.head + step[1], this.capture.heads));
      this.cells[this.state.layer * this.capture.heads + this.state.head].focus();
    }

    choose(layer, head) {
      Object.assign(this.state, { layer, head });
      this.update();
    }

    focus() { return this.hovered ?? this.selected; }

    pin(slot) {
      if (slot === null) { this.readout.textContent = "Choose a word or a box first: what is shown for it can be pinned."; return; }
      this.pins = [...this.pins, { slot, state: { ...this.state } }].slice(-MAX_PINS);
      this.drawPins();
    }

    /* ---------------------------------------------------------------- drawing */

    update() {
      const slot = this.focus();
      this.glow(this.boxes, this.words, slot, this.state);
      this.readout.replaceChildren(...this.describe(slot, this.state));
      for (const button of this.toggles) {
        const [group, value] = button.dataset.set.split(":");
        button.setAttribute("aria-pressed", String(this.state[group] === value));
      }
      this.colorGrid();
    }

    glow(boxes, words, slot, state) {
      const all = slot === null ? null : this.weights.of(state, slot);
      const top = all ? Math.max(...all) : 0;
      const strength = w => this.scale === "raw" ? w : top > 0 ? w / top : 0;
      for (const { node, face, label, text, slot: i } of boxes) {
        const w = all ? all[i] : 0, name = this.boxName(i);
        // Weak enough to keep the colours of the image visible. The box of the whole image is not tinted.
        face.style.fill = `rgba(var(--glow), ${name === "image" ? 0 : 0.5 * strength(w)})`;
        face.style.stroke = strength(w) > 0.1 ? "rgb(var(--glow))" : "";
        face.style.strokeWidth = `${1.5 + 4.5 * strength(w)}px`;
        label.textContent = all ? `${name} ${percent(w)}` : text.text;
        label.setAttribute("x", all ? text.nameX : text.x);
        label.setAttribute("y", all ? text.nameY : text.y);
        this.mark(node, all, w, i === slot);
      }
      for (const { node, number, slot: i } of words) {
        const w = all ? all[i] : 0;
        node.style.background = all ? `rgba(var(--glow), ${0.75 * strength(w)})` : "";
        node.style.color = all && strength(w) > 0.5 ? "#000" : "";
        number.textContent = all ? percent(w) : "";
        this.mark(node, all, w, i === slot);
      }
    }

    mark(node, all, weight, selected) {
      if (all) node.dataset.weight = weight.toFixed(5); else delete node.dataset.weight;
      node.classList.toggle("selected", selected);
    }

    colorGrid() {
      const [from, to] = SHARES[this.share], { layers, heads } = this.capture, w = this.weights;
      const shares = w.remember(`grid ${this.share}`, () => this.cells.map((_, i) =>
        w.share(w.head(Math.floor(i / heads), i % heads), from, to)));
      const top = Math.max(...shares, 1e-6);
      this.high.textContent = `${percent(top)} of the attention of ${from} slots goes to ${to} slots`;
      this.cells.forEach((cell, i) => {
        const layer = Math.floor(i / heads), head = i % heads;
        const chosen = layer === this.state.layer && (this.state.mode !== "head" || head === this.state.head);
        const here = layer === this.state.layer && head === this.state.head;
        cell.style.background = color(shares[i] / top);
        cell.classList.toggle("chosen", chosen);
        cell.setAttribute("tabindex", here ? 0 : -1);
        cell.setAttribute("aria-selected", String(chosen));
        cell.dataset.share = shares[i].toFixed(5);
        cell.title = `layer ${layer}, head ${head}: ${from} → ${to} ${percent(shares[i])}`;
        cell.setAttribute("aria-label", cell.title);
      });
    }

    name(i) {
      const slot = this.capture.slots[i], label = this.boxLabel(i);
      if (slot.kind === "image") return "the whole image";
      return slot.kind === "region" ? `box ${slot.text}${label && ` (${label})`}` : `“${slot.text}”`;
    }

    boxName(i) { return this.capture.slots[i].kind === "image" ? "image" : this.capture.slots[i].text; }

    /* What the source of boxes found in the box of a slot, "" if nothing is known. */
    boxLabel(i) { return this.capture.labels?.[this.capture.slots[i].box] || ""; }

    where(state) {
      if (state.mode === "head") return `layer ${state.layer}, head ${state.head}`;
      return state.mode === "mean" ? `layer ${state.layer}, mean of its heads` : `rollout of layers 0 to ${state.layer}`;
    }

    describe(slot, state) {
      if (slot === null) return [`${this.where(state)}. Point at a word or a box.`];
      const all = this.weights.of(state, slot);
      const order = all.map((w, i) => [w, i]).sort((a, b) => b[0] - a[0]).slice(0, 5);
      const verb = state.direction === "to" ? "attends to" : "is attended by";
      const sums = Object.entries(this.weights.groups).map(([name, slots]) =>
        `${name} ${percent(slots.reduce((sum, i) => sum + all[i], 0))}`).join(", ");
      return [element("strong", {}, `${this.name(slot)} `), `(${this.where(state)}) ${verb} `,
        order.map(([w, i]) => `${this.name(i)} ${percent(w)}`).join(", "), ".", element("br"),
        element("span", { class: "dim" }, state.direction === "to" ? `In all: ${sums}.` : "Columns need not sum to 100 %.")];
    }

    drawPins() {
      this.pinArea.replaceChildren(...this.pins.map((pin, i) => {
        const boxes = [], svg = this.drawing(this.capture.image.src, boxes, false);
        const words = this.capture.slots.flatMap((slot, k) => slot.box === null ? [this.word(slot, k, "span")] : []);
        this.glow(boxes, words, pin.slot, pin.state);
        const drop = element("button", { type: "button", "aria-label": "unpin",
          onclick: () => { this.pins.splice(i, 1); this.drawPins(); } }, "×");
        const verb = pin.state.direction === "to" ? "attends to" : "attended by";
        return element("article", { class: "pin" },
          element("header", {}, `${this.name(pin.slot)} ${verb} · ${this.where(pin.state)}`, drop), svg,
          element("div", { class: "words" }, ...words.map(w => w.node)));
      }));
    }
  }

  return { mount: (root, capture) => new Viewer(root, capture), Weights, element, percent, placeTexts, textSize };
})();

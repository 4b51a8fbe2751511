"use strict";
/* The live page. `state` holds the image, its boxes, and the last question with its answers (`baseline`). `gone` holds the
   words and boxes that the user took away under "What if?". Boxes are xyxy in pixels of the image, and are sent as they
   came, because features are known by the exact box. `labels`: what the source of boxes found, by box; a box that the
   user moved has none. */
(() => {
  const { element, percent, placeTexts, textSize } = VLBertViewer;
  const $ = id => document.getElementById(id);
  const state = { about: null, image: null, boxes: [], labels: new Map(), baseline: null, gone: { words: new Set(), boxes: new Set() }, turn: 0 };
  const MIN_BOX = 4;

  async function call(path, options) {
    const response = await fetch(path, options);
    const body = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
    if (!response.ok) throw new Error(body.error || `the server answered ${response.status}`);
    return body;
  }

  function say(text) { $("message").textContent = text; }

  /* ------------------------------------------------------------------ the image */

  async function take(file) {
    if (!file) return;
    say("");
    $("stage").replaceChildren(element("p", { class: "dim" }, "Reading the image …"));
    try {
      const found = await call("api/image", { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
      const labels = new Map(found.boxes.map((b, i) => [String(b), found.labels?.[i] ?? ""]));
      Object.assign(state, { image: found, boxes: found.boxes, labels, baseline: null });
      forget();
    } catch (error) {
      state.image = null;
      say(error.message);
    }
    draw();
  }

  function labelOf(box) { return state.labels.get(String(box)) || ""; }

  function boxTitle(i, box) { return `box ${i + 1} ${labelOf(box)}`.trim(); }

  function draw() {
    for (const id of ["add-box", "clear-boxes"]) $(id).disabled = !state.image;
    if (!state.image) { $("stage").replaceChildren(element("p", { class: "dim" }, "No image yet.")); return; }
    const { image: name, width, height } = state.image;
    const svg = element("svg:svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "image and boxes" },
      element("svg:image", { href: `api/image/${name}`, width, height }));
    const area = b => (b[2] - b[0]) * (b[3] - b[1]);
    const order = state.boxes.map((_, i) => i).sort((a, b) => area(state.boxes[b]) - area(state.boxes[a]));
    const texts = placeTexts(state.boxes.map((box, i) => ({ box, name: String(i + 1), label: labelOf(box) })),
      width, height, textSize(width, height));
    for (const i of order) svg.append(drawnBox(i));
    svg.append(element("svg:g", { class: "texts", "aria-hidden": "true" }, ...texts.map(drawnText)));  // above all edges
    svg.addEventListener("pointerdown", startDrawing);
    $("stage").replaceChildren(svg);
  }

  function drawnText({ x, y, text }, i) {
    const font = textSize(state.image.width, state.image.height);
    return element("svg:text", { x, y, "font-size": font, "stroke-width": font / 5, "data-text": i,
      class: state.gone.boxes.has(i) ? "absent" : "" }, text);
  }

  function drawnBox(i) {
    const [x1, y1, x2, y2] = state.boxes[i], unit = textSize(state.image.width, state.image.height);
    const place = { x: x1, y: y1, width: Math.max(x2 - x1, 1), height: Math.max(y2 - y1, 1) };
    const handle = element("svg:rect", { class: "handle", x: x2 - unit / 2, y: y2 - unit / 2, width: unit, height: unit });
    const node = element("svg:g", { class: `drawn ${state.gone.boxes.has(i) ? "absent" : ""}`, tabindex: 0, role: "button",
      "data-box": i, "aria-label": boxTitle(i, state.boxes[i]) },
      element("svg:title", {}, boxTitle(i, state.boxes[i])), element("svg:rect", { ...place, class: "edge" }),
      element("svg:rect", { ...place, class: "face" }), handle);
    node.addEventListener("pointerdown", e => startMoving(e, i, e.target === handle));
    node.addEventListener("keydown", e => keyOnBox(e, i));
    return node;
  }

  function point(event) {
    const svg = $("stage").querySelector("svg"), p = new DOMPoint(event.clientX, event.clientY);
    const { x, y } = p.matrixTransform(svg.getScreenCTM().inverse());
    return [Math.min(Math.max(x, 0), state.image.width - 1), Math.min(Math.max(y, 0), state.image.height - 1)];
  }

  function follow(change, end) {
    const move = e => { change(point(e)); draw(); };
    const stop = () => { window.removeEventListener("pointermove", move); end(); draw(); };
    window.addEventListener("pointermove", move);
    window.addEventListener("pointerup", stop, { once: true });
    window.addEventListener("pointercancel", stop, { once: true });
  }

  function startDrawing(event) {
    if (event.button !== 0 || event.target.closest(".drawn")) return;
    event.preventDefault();
    const [x, y] = point(event);
    state.boxes.push([x, y, x, y]);
    const i = state.boxes.length - 1;
    follow(([u, v]) => { state.boxes[i] = [Math.min(x, u), Math.min(y, v), Math.max(x, u), Math.max(y, v)]; }, () => {
      const [x1, y1, x2, y2] = state.boxes[i];
      if (x2 - x1 < MIN_BOX || y2 - y1 < MIN_BOX) state.boxes.splice(i, 1); else changed();
    });
  }

  function startMoving(event, i, resize) {
    event.stopPropagation();
    const [x, y] = point(event), before = [...state.boxes[i]];
    let moved = false;
    follow(([u, v]) => { moved = true; shift(i, before, u - x, v - y, resize); }, () => {
      if (moved) changed();
      focusBox(i);
    });
  }

  function shift(i, [x1, y1, x2, y2], dx, dy, resize) {
    const { width, height } = state.image, clamp = (v, low, high) => Math.min(Math.max(v, low), high);
    if (resize) {
      state.boxes[i] = [x1, y1, clamp(x2 + dx, x1 + MIN_BOX, width - 1), clamp(y2 + dy, y1 + MIN_BOX, height - 1)];
    } else {
      dx = clamp(dx, -x1, width - 1 - x2);
      dy = clamp(dy, -y1, height - 1 - y2);
      state.boxes[i] = [x1 + dx, y1 + dy, x2 + dx, y2 + dy];
    }
  }

  function keyOnBox(event, i) {
    const step = Math.max(state.image.width, state.image.height) / 100;
    const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    if (event.key === "Delete" || event.key === "Backspace") {
      state.boxes.splice(i, 1);
      changed();
      draw();
      focusBox(Math.min(i, state.boxes.length - 1));
    } else if (move) {
      shift(i, state.boxes[i], ...move, event.shiftKey);
      changed();
      draw();
      focusBox(i);
    } else return;
    event.preventDefault();
  }

  function focusBox(i) { setTimeout(() => $("stage").querySelector(`[data-box="${i}"]`)?.focus()); }

  function changed() { forget(); say(""); }

  /* ------------------------------------------------------------------ asking */

  function buildForm(about) {
    $("about").textContent = `${about.task} · ${about.model} · ${about.device}`;
    const hints = { texts: "one a line", numbers: "numbers, with commas between", number: "a number" };
    const inputs = about.fields.map(f => {
      const several = f.kind === "texts", hint = `${f.help}${hints[f.kind] ? ` (${hints[f.kind]})` : ""}`;
      const input = several ? element("textarea", { name: f.name, rows: 3 })
        : element("input", { type: "text", name: f.name, autocomplete: "off" });
      return element("label", {}, element("strong", {}, f.name), ` ${hint}${f.required ? "" : ", may be left out"}`, input);
    });
    $("form").replaceChildren(...inputs, element("button", { type: "submit" }, "Ask"));
    $("form").addEventListener("submit", e => { e.preventDefault(); ask(); });
  }

  function fields() {
    const out = {};
    for (const f of state.about.fields) {
      const text = $("form").elements[f.name].value.trim();
      if (!text && !f.required) continue;
      if (f.kind === "texts") out[f.name] = text.split("\n").map(t => t.trim()).filter(Boolean);
      else if (f.kind === "numbers") out[f.name] = text.split(/[\s,]+/).map(Number);
      else out[f.name] = f.kind === "number" ? Number(text) : text;
    }
    return out;
  }

  async function ask() {
    if (!state.image) { say("Give an image first."); return; }
    const asked = { fields: fields(), boxes: state.boxes.map(b => [...b]) };
    if (!String(asked.fields[state.about.text] ?? "").trim()) { say(`${state.about.text}: type something first.`); return; }
    state.gone.words.clear();
    state.gone.boxes.clear();
    const result = await send(asked, []);
    if (!result) return;
    state.baseline = { ...asked, answers: result.answers };
    showAnswers(result, null);
    showChips();
  }

  /* Drops the answer to a question if a newer question was sent meanwhile. */
  async function send({ fields, boxes, numbers }, also) {
    const turn = ++state.turn;
    say("");
    $("answers").setAttribute("aria-busy", "true");
    try {
      const result = await call("api/ask", { method: "POST", headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ image: state.image.image, fields, boxes, also, attention: true }) });
      if (turn !== state.turn) return null;
      for (const answer of [...result.answers, ...result.also]) if (answer.box) answer.answer = renumber(answer.answer, numbers);
      for (const slot of result.capture?.slots ?? []) if (slot.kind === "region") slot.text = renumber(slot.text, numbers);
      showViewer(result.capture);
      if (result.notes.length) say(result.notes.join(" · "));
      return result;
    } catch (error) {
      if (turn === state.turn) say(error.message);
      return null;
    } finally {
      $("answers").removeAttribute("aria-busy");
    }
  }

  /* Numbers of boxes in the request to numbers on the page, where boxes that were taken away still count. */
  function renumber(text, numbers) {
    return numbers ? text.replace(/\d+$/, n => String(numbers[n - 1] + 1)) : text;
  }

  function showAnswers(result, before) {
    const known = new Map((before || []).map(a => [a.key, a.probability]));
    const now = new Map([...result.also, ...result.answers].map(a => [a.key, a]));
    // With words or boxes taken away: the old answers in their order, then new answers among the best.
    const rows = before ? [...before.map(a => ({ ...a, probability: now.get(a.key)?.probability ?? 0 })),
      ...result.answers.filter(a => !known.has(a.key) && a.probability >= 0.01)] : result.answers;
    const seen = result.regions.map(r => `box ${r.box}: ${r.labels.map(l => `${l.label} ${percent(l.probability)}`).join(", ")}`);
    $("answers").replaceChildren(...rows.map(a => bar(a, known.get(a.key))),
      ...seen.map(text => element("div", { class: "dim" }, text)));
  }

  function bar(answer, before) {
    const answered = answer.box ? `${answer.answer} ${labelOf(answer.box)}`.trim() : answer.answer;
    const name = answer.mask === undefined ? answered : `[MASK] ${answer.mask + 1}: ${answered}`;
    const track = element("div", { class: "bar" }, element("i", { style: `width: ${100 * answer.probability}%` }));
    const number = element("span", {}, percent(answer.probability));
    if (before !== undefined) {
      const change = 100 * (answer.probability - before);
      track.append(element("b", { style: `left: ${100 * before}%` }));
      number.append(" ", element("span", { class: change < 0 ? "down" : "up" }, signed(change)));
    }
    return element("div", { class: "answer", "data-key": answer.key, "data-probability": answer.probability },
      element("span", {}, name), track, number);
  }

  function signed(points) {
    const text = Math.abs(points).toFixed(1);
    return text === "0.0" ? "±0.0" : `${points < 0 ? "−" : "+"}${text}`;
  }

  function showViewer(capture) {
    if (!capture) { $("viewer").replaceChildren(); return; }
    capture.image.src = `api/image/${state.image.image}`;
    capture.title = "Attention";
    const old = state.viewer?.state;
    state.viewer = VLBertViewer.mount($("viewer"), capture);
    if (old && old.layer < capture.layers && old.head < capture.heads) {
      Object.assign(state.viewer.state, old);
      state.viewer.update();
    }
  }

  /* ------------------------------------------------------------------ what if */

  function words() { return state.baseline.fields[state.about.text].trim().split(/\s+/); }

  function showChips() {
    const chip = (set, i, label, data) => element("button", { type: "button", "aria-pressed": String(set.has(i)), [data]: i,
      "aria-label": `without ${label}`, onclick: () => toggle(set, i) }, label);
    $("what-if").hidden = false;
    $("word-chips").replaceChildren(...words().map((w, i) => chip(state.gone.words, i, w, "data-word")));
    $("box-chips").replaceChildren(...state.baseline.boxes.map((b, i) => chip(state.gone.boxes, i, boxTitle(i, b), "data-chip")));
  }

  /* The fields for the kept boxes, with their new numbers; null if a text mentions a box that was taken away. */
  function renumbered(fields, kept) {
    const out = { ...fields }, number = n => kept.indexOf(n - 1) + 1;
    if (fields.hide) out.hide = fields.hide.map(number).filter(Boolean);
    if (!fields.objects) return out;
    out.objects = kept.map(k => fields.objects[k]).filter(Boolean);
    let gone = false;
    const text = t => t.replace(/\[[\d\s,]+\]/g, all => all.replace(/\d+/g, n => { gone ||= !number(Number(n)); return number(Number(n)); }));
    for (const [name, value] of Object.entries(fields)) {
      if (name === "objects") continue;
      if (typeof value === "string") out[name] = text(value);
      else if (Array.isArray(value) && typeof value[0] === "string") out[name] = value.map(text);
    }
    return gone ? null : out;
  }

  async function toggle(set, i) {
    if (!set.delete(i)) set.add(i);
    showChips();
    draw();
    const { fields, boxes, answers } = state.baseline;
    const text = words().filter((_, k) => !state.gone.words.has(k)).join(" ");
    const kept = boxes.map((_, k) => k).filter(k => !state.gone.boxes.has(k));
    const changed = renumbered({ ...fields, [state.about.text]: text }, kept);
    if (!changed) {
      set.delete(i);
      showChips();
      draw();
      say("This box is mentioned in a text: take the words away first.");
      return;
    }
    const result = await send({ fields: changed, boxes: kept.map(k => boxes[k]), numbers: kept }, answers.map(a => a.key));
    if (result) showAnswers(result, state.gone.words.size || state.gone.boxes.size ? answers : null);
    const pressed = document.querySelector(set === state.gone.words ? `[data-word="${i}"]` : `[data-chip="${i}"]`);
    pressed?.focus();
  }

  function forget() {
    state.baseline = null;
    state.gone.words.clear();
    state.gone.boxes.clear();
    $("what-if").hidden = true;
    $("answers").replaceChildren();
  }

  /* ------------------------------------------------------------------ start */

  $("file").addEventListener("change", e => take(e.target.files[0]));
  $("add-box").addEventListener("click", () => {
    const { width, height } = state.image;
    state.boxes.push([width * .375, height * .375, width * .625, height * .625]);
    changed();
    draw();
    focusBox(state.boxes.length - 1);
  });
  $("clear-boxes").addEventListener("click", () => { state.boxes = []; changed(); draw(); });
  $("restore").addEventListener("click", () => { state.gone.words.clear(); state.gone.boxes.clear(); draw(); ask(); });
  document.addEventListener("paste", e => {
    const file = [...e.clipboardData.files].find(f => f.type.startsWith("image/"));
    if (file) take(file);
  });
  document.addEventListener("dragover", e => { e.preventDefault(); $("stage").classList.add("over"); });
  document.addEventListener("dragleave", () => $("stage").classList.remove("over"));
  document.addEventListener("drop", e => {
    e.preventDefault();
    $("stage").classList.remove("over");
    take(e.dataTransfer.files[0]);
  });
  call("api/about").then(about => { state.about = about; buildForm(about); }, error => say(error.message));
})();

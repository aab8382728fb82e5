// The viewer: draws what app/view.py sends, tells the class of the pixel under the cursor, and reports clicks as the event "look".
// Everything but a click happens here, without the server.
const find = (selector) => element.querySelector(selector);
const enlargement = 640; // small images are drawn at a multiple of their size, at least about as large
const hidden = new Set(); // names of classes that are not drawn, in all panels and later images
const seen = new Set();
let view = null, photo = null, colors = null, panels = [], cursor = [0, 0], clicked = null, keys = false, turn = 0;

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function open() {
  const mine = ++turn, next = props.value;
  if (!next) return;
  const picture = new Image();
  picture.src = next.photo;
  const models = next.models.map(async (model) => ({
    ...model,
    ids: new Uint16Array((await unpacked(model.ids)).buffer),
    maps: { confidence: await unpacked(model.maps.confidence), entropy: await unpacked(model.maps.entropy) },
  }));
  const [bytes, ...unpackedModels] = await Promise.all([unpacked(next.colors), ...models, picture.decode()]);
  if (mine !== turn) return; // another image came meanwhile
  [view, photo, colors, clicked] = [next, picture, bytes, null];
  cursor = [view.shownWidth >> 1, view.shownHeight >> 1];
  panels = unpackedModels.slice(0, view.models.length).map(panelOf);
  find(".panels").replaceChildren(...panels.map((panel) => panel.section));
  find(".bar").style.background = `linear-gradient(to right, ${[0, 51, 102, 153, 204, 255].map(color).join(", ")})`;
  for (const each of element.querySelectorAll(".looks")) each.hidden = !view.looks;
  find(".viewer").hidden = false;
  paint();
  element.dataset.shown = view.name;
}

const color = (level) => `rgb(${colors.slice(3 * level, 3 * level + 3).join(" ")})`;

function made(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function panelOf(model) {
  const { shownWidth: width, shownHeight: height } = view;
  const factor = Math.max(1, Math.ceil(enlargement / Math.max(width, height)));
  const canvas = made("canvas", { width: width * factor, height: height * factor, tabIndex: 0 });
  canvas.style.width = `min(100%, calc(75vh * ${width / height}))`;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", "segmented image");
  canvas.setAttribute("aria-label", `${view.name}, segmented by ${model.title}`);
  canvas.setAttribute("aria-describedby", "contextseg-hint");
  const readout = made("p", { className: "readout" });
  readout.setAttribute("aria-live", "polite");
  const layer = made("canvas", { width, height });
  const section = made("section", { className: "panel" }, made("h3", { textContent: model.title }), canvas, readout,
    legendOf(model), made("p", { className: "note", textContent: model.note }));
  const panel = { model, canvas, readout, layer, factor, section };
  const at = (event) => [Math.floor((event.offsetX / canvas.clientWidth) * width), Math.floor((event.offsetY / canvas.clientHeight) * height)];
  canvas.addEventListener("pointermove", (event) => move(at(event), false));
  canvas.addEventListener("click", (event) => { move(at(event), false); look(); });
  canvas.addEventListener("keydown", (event) => pressed(event));
  canvas.addEventListener("blur", () => { keys = false; draw(); });
  return panel;
}

function legendOf(model) {
  const legend = made("fieldset", { className: "classes" }, made("legend", { textContent: "Classes" }));
  for (const each of model.classes) {
    if (each.background && !seen.has(each.name)) hidden.add(each.name);
    seen.add(each.name);
    const box = made("input", { type: "checkbox", checked: !hidden.has(each.name), value: each.name });
    const swatch = made("span", { className: "swatch" });
    swatch.style.background = `rgb(${each.color.join(" ")})`;
    legend.append(made("label", {}, box, swatch, `${each.name} ${each.share}`));
  }
  return legend;
}

function pressed(event) {
  const step = event.shiftKey ? 10 : 1;
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  if (moves[event.key]) move([cursor[0] + moves[event.key][0], cursor[1] + moves[event.key][1]], true);
  else if (event.key === "Enter" || event.key === " ") look();
  else return;
  event.preventDefault();
}

function move([x, y], byKeys) {
  keys = byKeys;
  cursor = [Math.min(Math.max(x, 0), view.shownWidth - 1), Math.min(Math.max(y, 0), view.shownHeight - 1)];
  panels.forEach(tell);
  draw();
}

// The pixel of the image that a shown pixel stands for, as shown_pixels in app/segmenters.py chooses it.
const pixel = () => [
  Math.floor(((cursor[0] + 0.5) * view.width) / view.shownWidth), Math.floor(((cursor[1] + 0.5) * view.height) / view.shownHeight),
];

function look() {
  if (!view.looks) return;
  clicked = cursor;
  const [x, y] = pixel();
  draw();
  trigger("look", { x, y });
}

function tell({ model, readout }) {
  const at = cursor[1] * view.shownWidth + cursor[0];
  const name = model.classes.find((each) => each.id === model.ids[at])?.name;
  const percent = (values) => `${Math.round((100 * values[at]) / 255)} %`;
  const [x, y] = pixel();
  readout.textContent = `x ${x}, y ${y}: ${name}, confidence ${percent(model.maps.confidence)}, entropy ${percent(model.maps.entropy)}`;
}

function paint() {
  const what = find(".what input:checked").value, opacity = Number(find(".opacity input").value);
  find(".opacity output").textContent = `${opacity} %`;
  find(".scale").hidden = what === "classes";
  for (const { model, layer } of panels) {
    const values = what === "classes" ? model.ids : model.maps[what];
    const pixels = new ImageData(view.shownWidth, view.shownHeight);
    const words = new Uint32Array(pixels.data.buffer), table = new Uint32Array(65536);
    const alpha = Math.round(2.55 * opacity);
    const word = (red, green, blue) => ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
    if (what === "classes") for (const each of model.classes) table[each.id] = hidden.has(each.name) ? 0 : word(...each.color);
    else for (let level = 0; level < 256; level++) table[level] = word(...colors.slice(3 * level, 3 * level + 3));
    for (let at = 0; at < words.length; at++) words[at] = table[values[at]];
    layer.getContext("2d").putImageData(pixels, 0, 0);
  }
  draw();
}

function draw() {
  for (const { canvas, layer, factor } of panels) {
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(photo, 0, 0, canvas.width, canvas.height);
    context.drawImage(layer, 0, 0, canvas.width, canvas.height);
    if (clicked) cross(context, clicked, factor, "rgb(0 255 255)");
    if (keys) cross(context, cursor, factor, "white");
  }
}

function cross(context, place, factor, ink) {
  const [x, y] = place.map((at) => (at + 0.5) * factor), arm = Math.max(8, context.canvas.width / 40);
  for (const [style, width] of [["black", arm / 3], [ink, arm / 6]]) {
    context.strokeStyle = style;
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(x - arm, y); context.lineTo(x + arm, y);
    context.moveTo(x, y - arm); context.lineTo(x, y + arm);
    context.stroke();
  }
}

find(".opacity input").addEventListener("input", paint);
find(".what").addEventListener("change", paint);
find(".panels").addEventListener("change", ({ target }) => {
  if (target.checked) hidden.delete(target.value); else hidden.add(target.value);
  for (const box of element.querySelectorAll(".classes input")) box.checked = !hidden.has(box.value);
  paint();
});
watch("value", open);
open();

import * as api from "./api.js";

const $ = (selector, root = document) => root.querySelector(selector);
const copy = (id) => $(`#${id}`).content.firstElementChild.cloneNode(true);
const element = (tag, text, attributes = {}) => {
  const made = Object.assign(document.createElement(tag), { textContent: text });
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};

const LETTERS = ["A", "B"];
const tasks = []; // { letter, element, adapter }
const mixture = "page-" + Array.from(crypto.getRandomValues(new Uint8Array(6)), (byte) => byte.toString(16)).join("");
let mixed = false; // whether the server has the mixture
let base = "";
let asked = ""; // the message asked last
let running = null; // AbortController of the answers that come in
let sliding = null; // likewise of the mixture's

const say = (text) => { $("#said").textContent = text; };
const written = () => tasks.filter((task) => task.adapter);
const share = () => Number($("#share").value) / 100;

function problem(root, error) {
  const place = $(".problem:not(.far)", root);
  place.hidden = !error;
  place.textContent = error ? error.message : "";
  if (error instanceof api.KeyWanted) askForKey();
}

// The adapters

function addTask() {
  const task = { letter: LETTERS[tasks.length], element: copy("task-template"), adapter: null };
  const root = task.element;
  tasks.push(task);
  $(".title", root).textContent = tasks.length > 1 ? `Description ${task.letter}` : "Description";
  $("form", root).addEventListener("submit", (event) => { event.preventDefault(); write(task); });
  $("textarea", root).addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); $("form", root).requestSubmit(); }
  });
  for (const button of root.querySelectorAll(".download")) button.addEventListener("click", () => download(task, button));
  $(".remove", root).hidden = tasks.length === 1;
  $(".remove", root).addEventListener("click", () => removeTask(task));
  $("#tasks").append(root);
  arrange();
  return task;
}

function removeTask(task) {
  tasks.splice(tasks.indexOf(task), 1);
  task.element.remove();
  arrange();
  $("#compare").focus();
}

function arrange() {
  const two = tasks.length === 2;
  $(".title", tasks[0].element).textContent = two ? "Description A" : "Description";
  $("#compare").hidden = two || !tasks[0].adapter;
  $("#between").hidden = written().length < 2;
}

// Write the adapter of a task's description; true if the task has one.
async function write(task) {
  const root = task.element, description = $("textarea", root).value.trim(), button = $("[type=submit]", root);
  if (!description || button.disabled) return false;
  button.disabled = true;
  problem(root, null);
  say("The adapter is being written.");
  const began = performance.now();
  try {
    task.adapter = await api.describe(description);
    task.text = description;
    show(task, (performance.now() - began) / 1000);
    return true;
  } catch (error) {
    problem(root, error);
    return false;
  } finally {
    button.disabled = false;
    arrange();
  }
}

const inSeconds = (seconds) => `${seconds < 0.095 ? seconds.toFixed(3) : seconds.toFixed(2)} s`;

function show(task, seconds) {
  const { adapter, element: root } = task;
  const size = `${(adapter.parameters / 1e6).toFixed(2)} million numbers, ${(adapter.parameters * 4 / 1e6).toFixed(1)} MB`;
  const facts = `Written in ${inSeconds(adapter.seconds)}, here after ${inSeconds(seconds)}: ${size}, rank ${adapter.rank}.`;
  $(".facts", root).textContent = facts;
  $(".adapter", root).hidden = false;
  $(".far", root).hidden = $(".nearest", root).hidden = true;
  say(facts);
  const current = (show) => (found) => { if (task.adapter === adapter) show(root, found); };
  const failed = (error) => problem(root, error);
  api.norms(adapter.id).then(current(draw)).catch(failed);
  api.nearest(adapter.id).then(current(compareToTrained)).catch(failed);
}

function draw(root, { norms }) {
  const strips = $(".strips", root), table = $("table", root);
  strips.replaceChildren();
  table.replaceChildren();
  const most = Math.max(...Object.values(norms).flat(), Number.MIN_VALUE);
  const layers = Object.values(norms)[0].length;
  table.createTHead().append(element("th", "layer", { scope: "col" }));
  for (const [name, values] of Object.entries(norms)) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const [least, largest] = [Math.min(...values), Math.max(...values)].map((value) => value.toFixed(2));
    svg.setAttribute("viewBox", `0 0 ${layers} 1`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `${name}: between ${least} and ${largest}, largest in layer ${values.indexOf(Math.max(...values))}`);
    values.forEach((value, layer) => {
      const cell = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      for (const [key, number] of Object.entries({ x: layer + 0.05, y: 0, width: 0.9, height: 1 })) cell.setAttribute(key, number);
      cell.setAttribute("fill-opacity", (value / most).toFixed(3));
      svg.append(cell);
    });
    strips.append(element("p", `${name}, ${least} to ${largest}`), svg);
    table.tHead.append(element("th", name, { scope: "col" }));
  }
  const body = table.createTBody();
  for (let layer = 0; layer < layers; layer++) {
    const row = body.insertRow();
    row.append(element("th", layer, { scope: "row" }), ...Object.values(norms).map((values) => element("td", values[layer].toFixed(3))));
  }
  $(".axis", root).textContent = `Layer 0 on the left, layer ${layers - 1} on the right; the darker, the larger.`;
}

function compareToTrained(root, { nearest, near }) {
  $(".nearest", root).hidden = !nearest;
  $(".far", root).hidden = near !== false;
  if (!nearest) return;
  $(".nearest ol", root).replaceChildren(
    ...nearest.map((found) => element("li", `${found.description} (similarity ${found.similarity.toFixed(2)})`)),
  );
  if (near === false) say($(".far", root).textContent);
}

async function download(task, button) {
  button.disabled = true;
  problem(task.element, null);
  try {
    const part = button.dataset.file, blob = await api.file(task.adapter.id, part);
    const stem = task.adapter.description.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60);
    const link = element("a", "", { href: URL.createObjectURL(blob), download: `${stem || "adapter"}.${part.split(".")[1]}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch (error) {
    problem(task.element, error);
  } finally {
    button.disabled = false;
  }
}

// The conversation

function models() {
  const found = [{ id: base, title: "Base model" }];
  for (const task of written()) {
    found.push({ id: task.adapter.id, title: tasks.length > 1 ? `Adapter ${task.letter}` : "With the adapter" });
  }
  if (written().length === 2) found.push({ id: mixture, title: mixtureTitle(), mixed: true });
  return found;
}

const mixtureTitle = () => `Mixture, ${Math.round(share() * 100)}% of B`;

async function ask(message) {
  for (const task of tasks) if ($("textarea", task.element).value.trim() !== (task.text ?? "")) await write(task);
  asked = message;
  running = new AbortController();
  $("#send").disabled = true;
  $("#stop").disabled = false;
  const turn = copy("turn-template");
  $("h3", turn).textContent = message;
  $("#turns").prepend(turn);
  const answers = models().map((model) => {
    const place = copy("answer-template");
    place.classList.toggle("mixture", Boolean(model.mixed));
    $("h4", place).textContent = model.title;
    $(".columns", turn).append(place);
    return (model.mixed ? mix(running.signal) : Promise.resolve()).then(() => stream(place, model.id, message, running.signal), (error) => problem(place, error));
  });
  await Promise.all(answers);
  $("#send").disabled = false;
  $("#stop").disabled = true;
  say(Array.from(turn.querySelectorAll(".answer"), (place) => `${$("h4", place).textContent}: ${$(".text", place).textContent}`).join(". "));
}

async function stream(place, model, message, signal) {
  const text = $(".text", place);
  text.textContent = "";
  problem(place, null);
  place.setAttribute("aria-busy", "true");
  try {
    for await (const piece of api.answer(model, message, signal)) text.append(piece);
  } catch (error) {
    if (error.name !== "AbortError") problem(place, error);
  } finally {
    if (!signal.aborted || signal === running?.signal) place.removeAttribute("aria-busy");
  }
}

// The mixture

async function mix(signal) {
  const [one, other] = written().map((task) => task.adapter.id);
  await api.mix(mixture, [{ name: one, weight: 1 - share() }, { name: other, weight: share() }], signal);
  mixed = true;
}

async function slide() {
  sliding?.abort();
  const mine = (sliding = new AbortController());
  const place = $("#turns .turn .mixture");
  if (!asked || !place) return;
  $("h4", place).textContent = mixtureTitle();
  try {
    await mix(mine.signal);
    await stream(place, mixture, asked, mine.signal);
    if (!mine.signal.aborted) say(`${mixtureTitle()}: ${$(".text", place).textContent}`);
  } catch (error) {
    if (error.name !== "AbortError") problem(place, error);
  }
}

// The page

function askForKey() {
  $("#key-form").hidden = false;
  $("#key").focus();
}

async function begin() {
  const found = await api.get("/v1/examples");
  base = found.base;
  $("#base").textContent = base;
  $("#examples").replaceChildren(
    ...found.examples.map((example) => {
      const chip = element("button", example.description, { type: "button" });
      chip.classList.add("quiet");
      chip.addEventListener("click", () => {
        const empty = tasks.find((task) => !$("textarea", task.element).value.trim()) ?? tasks.at(-1);
        $("textarea", empty.element).value = example.description;
        $("#message").value = example.input;
        $("form", empty.element).requestSubmit();
      });
      return chip;
    }),
  );
}

addTask();
$("#compare").addEventListener("click", () => $("textarea", addTask().element).focus());
$("#chat").addEventListener("submit", (event) => {
  event.preventDefault();
  const message = $("#message").value.trim();
  if (message && !$("#send").disabled) ask(message);
});
$("#message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); $("#chat").requestSubmit(); }
});
$("#stop").addEventListener("click", () => { running?.abort(); sliding?.abort(); });
$("#share").addEventListener("input", () => { $("#share-shown").textContent = `${$("#share").value}%`; });
$("#share").addEventListener("change", slide);
$("#key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  try {
    api.useKey($("#key").value);
    begin().then(() => { $("#key-form").hidden = true; }).catch((error) => problem($("#key-form"), error));
  } catch (error) {
    problem($("#key-form"), error);
  }
});
addEventListener("pagehide", () => { if (mixed) api.forget(mixture).catch(() => {}); });
begin().catch((error) => problem(error instanceof api.KeyWanted ? $("#key-form") : $("#chat"), error));

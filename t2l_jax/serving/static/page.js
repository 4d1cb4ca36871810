import * as api from "./api.js";
import { drawNorms, drawNearest } from "./adapter.js";
import { $, copy, element, isLocked, lock } from "./elements.js";

const LETTERS = ["A", "B"];
const tasks = []; // { letter, element, adapter, text that it was written for, promise while it is being written }
const active = new Set(); // AbortControllers of the answers that come in
let asking = false; // from a click on Send until all answers are there
let base = "";

const say = (text) => { $("#said").textContent = text; };
const textOf = (task) => $("textarea", task.element).value.trim();
const written = () => tasks.filter((task) => task.adapter);
const share = () => Number($("#share").value) / 100;

function problem(root, error) {
  const place = $(".problem:not(.far)", root);
  place.hidden = !error;
  place.textContent = error ? error.message : "";
  if (error instanceof api.KeyWanted) askForKey();
}

// Enter sends a form, unless an input method takes it to end a word.
function sendOnEnter(field, form) {
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
}

// What is visible and what can be clicked, from what there is.
function arrange() {
  const two = tasks.length === 2;
  for (const task of tasks) {
    const root = task.element;
    $(".title", root).textContent = two ? `Description ${task.letter}` : "Description";
    $(".adapter", root).hidden = !task.adapter || task.text !== textOf(task); // it is that of the text above it
    for (const button of root.querySelectorAll(".download")) {
      if (two) button.setAttribute("aria-label", `${button.textContent}, adapter ${task.letter}`);
      else button.removeAttribute("aria-label");
    }
  }
  $("#compare").hidden = two || !tasks[0].adapter;
  $("#between").hidden = written().length < 2;
  lock($("#send"), asking || active.size > 0);
  lock($("#stop"), active.size === 0);
}

// The adapters

function addTask() {
  const root = copy("task-template"), second = tasks.length > 0;
  const task = { letter: LETTERS[tasks.length], element: root, adapter: null, text: null, writing: null, again: false };
  tasks.push(task);
  $("form", root).addEventListener("submit", (event) => { event.preventDefault(); write(task); });
  sendOnEnter($("textarea", root), $("form", root));
  $("textarea", root).addEventListener("input", arrange);
  for (const button of root.querySelectorAll(".download")) {
    const find = async () => ({ id: (await api.describe(task.text)).id, title: task.text }); // the server may have let go of it
    button.addEventListener("click", () => download(button, root, find));
  }
  $(".remove", root).hidden = !second;
  $(".remove", root).addEventListener("click", () => removeTask(task));
  $("#tasks").append(root);
  arrange();
  return task;
}

function removeTask(task) {
  tasks.splice(tasks.indexOf(task), 1);
  task.element.remove();
  arrange();
  ($("#compare").hidden ? $("textarea", tasks[0].element) : $("#compare")).focus();
}

// Write the adapter of a task's description; true if that succeeds. While one is written, it is followed by another.
function write(task) {
  task.again = Boolean(task.writing);
  task.writing ??= (async () => {
    for (;;) {
      const good = await rewrite(task);
      if (!task.again) return good;
      task.again = false;
    }
  })().finally(() => { task.writing = null; });
  return task.writing;
}

async function rewrite(task) {
  const root = task.element, description = textOf(task), button = $("[type=submit]", root);
  if (!description) return false;
  lock(button, true);
  problem(root, null);
  say("The adapter is being written.");
  try {
    task.adapter = await api.describe(description);
    task.text = description;
    show(task);
    return true;
  } catch (error) {
    problem(root, error);
    return false;
  } finally {
    lock(button, false);
    arrange();
  }
}

// Bring a task's adapter up to date with its text; false if that fails.
async function refreshed(task) {
  await task.writing;
  if (textOf(task) === (task.text ?? "")) return true;
  if (textOf(task)) return write(task);
  task.adapter = task.text = null;
  arrange();
  return true;
}

const inSeconds = (seconds) => `${seconds < 0.095 ? seconds.toFixed(3) : seconds.toFixed(2)} s`;

function show(task) {
  const { adapter, element: root } = task;
  const size = `${(adapter.parameters / 1e6).toFixed(2)} million numbers, ${((adapter.parameters * 4) / 1e6).toFixed(1)} MB`;
  const facts = `Written in ${inSeconds(adapter.seconds)}: ${size}, rank ${adapter.rank}.`;
  $(".facts", root).textContent = facts;
  $(".far", root).hidden = true;
  $(".nearest ol", root).replaceChildren(element("li", "being looked for, which takes a while the first time"));
  say(facts);
  const current = (show) => (found) => { if (task.adapter === adapter) show(root, found); };
  const failed = (error) => problem(root, error);
  api.norms(adapter.id).then(current(drawNorms)).catch(failed);
  api.nearest(adapter.id).then(current(showNearest)).catch(failed);
}

function showNearest(root, found) {
  drawNearest(root, found);
  if (found.near === false) say($(".far", root).textContent);
}

// Save a file of the adapter that `find` gives, under a name made of its title.
async function download(button, root, find) {
  if (isLocked(button)) return;
  lock(button, true);
  problem(root, null);
  try {
    const { id, title } = await find();
    const part = button.dataset.file, blob = await api.file(id, part);
    const stem = title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60);
    const link = element("a", "", { href: URL.createObjectURL(blob), download: `${stem || "adapter"}.${part.split(".")[1]}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch (error) {
    problem(root, error);
  } finally {
    lock(button, false);
  }
}

// The answers

function models() {
  const found = [{ id: base, title: "Base model" }];
  for (const task of written()) {
    found.push({ id: task.adapter.id, title: tasks.length > 1 ? `Adapter ${task.letter}` : "With the adapter" });
  }
  if (written().length === 2) found.push({ title: mixtureTitle(), mixed: true });
  return found;
}

const mixtureTitle = () => `Mixture, ${Math.round(share() * 100)}% of B`;

async function ask(message) {
  asking = true;
  arrange();
  problem($("#chat"), null);
  try {
    if (!base) await begin();
    for (const task of tasks) if (!(await refreshed(task))) return;
    await askAll(message);
  } catch (error) {
    problem($("#chat"), error);
  } finally {
    asking = false;
    arrange();
  }
}

async function askAll(message) {
  const turn = copy("turn-template");
  $("h3", turn).textContent = message;
  $("#turns").prepend(turn);
  await Promise.all(models().map((model) => {
    const place = copy("answer-template");
    place.classList.toggle("mixture", Boolean(model.mixed));
    $("h4", place).textContent = model.title;
    $(".columns", turn).append(place);
    return answer(place, model, message);
  }));
  say(Array.from(turn.querySelectorAll(".answer"), spoken).join(". "));
}

// Stream an answer to its place, instead of one that still comes in there.
async function answer(place, model, message) {
  place.controller?.abort();
  const controller = (place.controller = new AbortController());
  const text = $(".text", place);
  active.add(controller);
  arrange();
  text.textContent = "";
  problem(place, null);
  place.setAttribute("aria-busy", "true");
  try {
    const id = model.mixed ? (await mix(controller.signal)).id : model.id;
    for await (const piece of api.answer(id, message, controller.signal)) text.append(piece);
  } catch (error) {
    if (error.name !== "AbortError") problem(place, error);
  } finally {
    active.delete(controller);
    if (place.controller === controller) place.removeAttribute("aria-busy");
    arrange();
  }
}

// For screen readers: the beginning of an answer, and what went wrong.
function spoken(place) {
  const text = $(".text", place).textContent, wrong = $(".problem", place).textContent;
  return `${$("h4", place).textContent}: ${text.length > 80 ? `${text.slice(0, 80)} and so on` : text} ${wrong}`;
}

// The mixture

function mix(signal) {
  const [one, other] = written().map((task) => task.adapter.id);
  return api.mix([{ name: one, weight: 1 - share() }, { name: other, weight: share() }], signal);
}

async function slide() {
  const place = $("#turns .turn:first-child .mixture");
  if (!place) return;
  const title = ($("h4", place).textContent = mixtureTitle());
  await answer(place, { mixed: true }, $("h3", place.closest(".turn")).textContent);
  if (title === mixtureTitle()) say(spoken(place));
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
  $("#examples").replaceChildren(...found.examples.map((example) => {
    const chip = element("button", example.description, { type: "button", class: "quiet" });
    chip.addEventListener("click", () => {
      const task = tasks.find((each) => !textOf(each)) ?? tasks.at(-1);
      $("textarea", task.element).value = example.description;
      $("#message").value = example.input;
      $("form", task.element).requestSubmit();
    });
    return chip;
  }));
}

addTask();
$("#compare").addEventListener("click", () => $("textarea", addTask().element).focus());
sendOnEnter($("#message"), $("#chat"));
$("#chat").addEventListener("submit", (event) => {
  event.preventDefault();
  const message = $("#message").value.trim();
  if (message && !isLocked($("#send"))) ask(message);
});
$("#stop").addEventListener("click", () => { for (const controller of active) controller.abort(); });
$("#share").addEventListener("input", () => {
  $("#share-shown").textContent = `${$("#share").value}%`;
  $("#share").setAttribute("aria-valuetext", `${$("#share").value}% of B`);
});
$("#share").addEventListener("change", slide);
for (const button of document.querySelectorAll("#between .download")) {
  const find = async () => ({ title: mixtureTitle(), id: (await mix()).id });
  button.addEventListener("click", () => download(button, $("#between"), find));
}
$("#key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    api.useKey($("#key").value);
    await begin();
    $("#key-form").hidden = true;
    $("textarea", tasks[0].element).focus();
  } catch (error) {
    problem($("#key-form"), error);
  }
});

try {
  const given = location.hash.startsWith("#key=") ? location.hash.slice("#key=".length) : null;
  if (given !== null) {
    history.replaceState(null, "", location.pathname); // so that the key is in no bookmark
    api.useKey(given);
  }
  await begin();
} catch (error) {
  problem(error instanceof api.KeyWanted ? $("#key-form") : $("#chat"), error);
}

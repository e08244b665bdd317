"use strict";
// Issues are numbers 0 ... M - 1 in ranked order, images by first appearance. Names come from data: they only ever
// become text (textContent), never HTML.
const PAGE_SIZE = 60;
const COLUMNS = ["index", "image", "class", "given", "suggested", "decision"];
const WORDS = { a: "accept", r: "reject" };
const GIVEN = ["absent", "present"];
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const inline = JSON.parse($("inline").textContent);
const total = data.image.length;
const numbers = new Intl.NumberFormat("en");

const decisions = new Array(total).fill("-"); // "a": accept, "r": reject, "-": none yet
const undoable = []; // lists of [issue, decision before]
const reviewed = data.classes.map(() => 0); // decisions by class
const cells = []; // of the table of counts, by class
let filtered = []; // issues that pass the filters
let selected = 0; // a place in `filtered`

// ---- decisions ----

function restore() {
  try {
    const kept = localStorage.getItem(data.key);
    if (kept?.length === total && /^[-ar]*$/.test(kept)) [...kept].forEach((d, issue) => decide(issue, d));
  } catch {
    tell("This browser keeps no decisions: export them before you close the page.");
  }
}

function keep() {
  try {
    localStorage.setItem(data.key, decisions.join(""));
  } catch {
    tell("This browser cannot keep the decisions: export them before you close the page.");
  }
}

function decide(issue, decision) {
  const k = data.class[issue];
  reviewed[k] += (decision !== "-") - (decisions[issue] !== "-");
  decisions[issue] = decision;
}

// Makes decisions, [[issue, decision], ...], as one step of undo.
function change(made, canUndo = true) {
  if (canUndo) undoable.push(made.map(([issue]) => [issue, decisions[issue]]));
  for (const [issue, decision] of made) decide(issue, decision);
  keep();
  showProgress();
  for (const card of $("gallery").children) showDecision(card);
}

function undo() {
  const last = undoable.pop();
  if (!last) return tell("There is nothing to undo.");
  change(last, false);
  const place = filtered.indexOf(last[0][0]);
  if (place >= 0) select(place);
  tell(last.length === 1 ? "Undid one decision." : `Undid ${numbers.format(last.length)} decisions.`);
}

// ---- what is shown ----

const tell = (text) => ($("message").textContent = text);
const pageOf = (place) => Math.floor(place / PAGE_SIZE);
const fold = (text) => text.normalize("NFC").toLowerCase(); // file systems spell accents in two ways
const digits = (value) => (value === null ? "unknown" : value.toFixed(3));

function thumbnail(image) {
  const row = data.rows[image];
  if (image < inline.length) return `data:image/webp;base64,${inline[image]}`;
  return `thumbnails/${Math.floor(row / 1000)}/${row}.webp`;
}

function makeCard(issue) {
  const card = $("card").content.firstElementChild.cloneNode(true);
  const [image, given] = [data.image[issue], data.given[issue]];
  const [name, className] = [data.names[image], data.classes[data.class[issue]]];
  card.dataset.issue = issue;
  card.querySelector(".class bdi").textContent = className;
  card.querySelector(".given").textContent = `Given: ${GIVEN[given]}`;
  card.querySelector(".suggested").textContent = `Suggested: ${GIVEN[1 - given]}`;
  card.querySelector(".score").textContent = `Score ${digits(data.score[issue])}, posterior ` +
    `${digits(data.posterior[issue])}, confidence ${digits(data.confidence[issue])}`;
  card.querySelector(".name bdi").textContent = name;
  card.dataset.what = `${className}, ${name}`;
  if (data.pictures) {
    const picture = card.querySelector("img");
    picture.onload = () => picture.classList.toggle("tiny", Math.max(picture.naturalWidth, picture.naturalHeight) <= 64);
    picture.src = thumbnail(image);
  } else card.querySelector(".picture").remove();
  showDecision(card);
  return card;
}

function showDecision(card) {
  const decision = decisions[card.dataset.issue];
  if (decision === "-") delete card.dataset.decision;
  else card.dataset.decision = decision;
  for (const button of card.querySelectorAll("button")) {
    const pressed = button.value === decision;
    button.setAttribute("aria-pressed", pressed);
    button.textContent = { a: pressed ? "Accepted" : "Accept", r: pressed ? "Rejected" : "Reject" }[button.value];
    button.setAttribute("aria-label", `${button.textContent}: ${card.dataset.what}`);
  }
}

function showProgress() {
  const done = reviewed.reduce((sum, n) => sum + n, 0);
  $("reviewed").textContent = `${numbers.format(done)} of ${numbers.format(total)} reviewed`;
  $("progress").max = total || 1;
  $("progress").value = done;
  $("undo").disabled = undoable.length === 0;
  $("export").disabled = done === 0;
  cells.forEach((cell, k) => (cell.textContent = numbers.format(reviewed[k])));
}

function showPage(page) {
  const issues = filtered.slice(page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
  const pages = Math.max(1, Math.ceil(filtered.length / PAGE_SIZE));
  $("gallery").replaceChildren(...issues.map(makeCard));
  $("gallery").dataset.page = page;
  const [from, to] = [page * PAGE_SIZE + 1, page * PAGE_SIZE + issues.length].map(numbers.format);
  const none = total ? "No issue passes the filters." : "No label issues were found.";
  $("shown").textContent = issues.length ? `Issues ${from} to ${to} of ${numbers.format(filtered.length)}` : none;
  $("pages").textContent = `of ${numbers.format(pages)}`;
  [$("page").value, $("page").max] = [page + 1, pages];
  [$("previous").disabled, $("next").disabled] = [page === 0, page >= pages - 1];
}

// Selects a place in the filtered list, turning the page if it must.
function select(place, focus = true) {
  selected = Math.max(0, Math.min(place, filtered.length - 1));
  const gallery = $("gallery");
  if (gallery.dataset.page !== String(pageOf(selected)) || !gallery.children.length) showPage(pageOf(selected));
  for (const card of gallery.querySelectorAll("[aria-current]")) {
    card.removeAttribute("aria-current");
    card.tabIndex = -1;
  }
  const card = gallery.children[selected % PAGE_SIZE];
  if (!card) return;
  card.setAttribute("aria-current", "true");
  card.tabIndex = 0;
  if (focus) card.focus();
}

// ---- filters ----

function applyFilters() {
  const [k, kind, search] = [$("class").value, $("kind").value, fold($("search").value)];
  const from = $("from").value === "" ? 0 : Number($("from").value);
  const to = $("to").value === "" ? 1 : Number($("to").value);
  const found = data.names.map((name) => !search || fold(name).includes(search));
  filtered = [];
  for (let issue = 0; issue < total; issue++) {
    const score = data.score[issue];
    if (k !== "" && data.class[issue] !== Number(k)) continue;
    if (kind !== "" && data.given[issue] !== Number(kind)) continue;
    if (score >= from && score <= to && found[data.image[issue]]) filtered.push(issue);
  }
  delete $("gallery").dataset.page;
  for (const button of $("counts").querySelectorAll("button")) button.setAttribute("aria-pressed", button.value === k);
  select(0, false);
}

function fillFilters() {
  data.kinds.forEach((kind, given) => $("kind").add(new Option(kind, given)));
  const counts = data.classes.map(() => [0, 0]);
  for (let issue = 0; issue < total; issue++) counts[data.class[issue]][data.given[issue]]++;
  data.classes.forEach((name, k) => {
    if (counts[k][0] + counts[k][1]) $("class").add(new Option(name, k));
  });
  const body = $("counts").querySelector("tbody");
  const order = [...counts.keys()].filter((k) => counts[k][0] + counts[k][1]);
  order.sort((i, j) => counts[j][0] + counts[j][1] - counts[i][0] - counts[i][1]);
  for (const k of order) {
    const row = body.insertRow();
    const head = document.createElement("th");
    const button = document.createElement("button");
    const name = document.createElement("bdi");
    head.scope = "row";
    [button.type, button.value, name.textContent] = ["button", k, data.classes[k]];
    button.append(name);
    head.append(button);
    row.append(head);
    for (const count of [counts[k][1], counts[k][0]]) row.insertCell().textContent = numbers.format(count);
    cells[k] = row.insertCell();
  }
}

// ---- CSV ----

// A spreadsheet takes a name that begins with one of these for a formula; an apostrophe before it makes it text. The
// rule is that of label_issues.csv.
const isFormula = (name) => /^'*[=+\-@\t\r\n＝＋－＠]/.test(name);
const guard = (name) => (isFormula(name) ? `'${name}` : name);
const unguard = (name) => (name.startsWith("'") && isFormula(name) ? name.slice(1) : name);

function csvLine(cells) {
  return cells.map((cell) => (/[",\r\n]/.test(cell) ? `"${String(cell).replaceAll('"', '""')}"` : cell)).join(",") + "\r\n";
}

function exportDecisions() {
  const lines = ["\ufeff", csvLine(COLUMNS)]; // the mark tells spreadsheets that it is UTF-8
  decisions.forEach((decision, issue) => {
    if (decision === "-") return;
    const [image, given] = [data.image[issue], data.given[issue]];
    const [name, className] = [data.names[image], data.classes[data.class[issue]]].map(guard);
    lines.push(csvLine([data.rows[image], name, className, given, 1 - given, WORDS[decision]]));
  });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, { type: "text/csv" }));
  link.download = "decisions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  tell(`Exported ${numbers.format(lines.length - 2)} decisions.`);
}

function parseCsv(text) {
  const records = [[]];
  const separator = [",", ";", "\t"].find((sign) => text.startsWith(COLUMNS[0] + sign)) ?? ","; // as spreadsheets save
  // A cell, quoted or not, and what ends it.
  const cell = new RegExp(`(?:"([^"]*(?:""[^"]*)*)"|([^"${separator}\r\n]*))(${separator}|\r?\n|\r|$)`, "g");
  for (const [, quoted, plain, end] of text.matchAll(cell)) {
    records.at(-1).push(quoted === undefined ? plain : quoted.replaceAll('""', '"'));
    if (end !== separator) records.push([]);
  }
  return records.filter((record) => record.length > 1);
}

// Returns [[issue, decision], ...]; throws an Error that says what is wrong.
function readDecisions(text) {
  const [header, ...records] = parseCsv(text);
  if (String(header) !== String(COLUMNS)) {
    throw new Error(`Expected the columns ${COLUMNS.join(",")}, found ${header ? header.join(",") : "none"}. Import a file that this page exported.`);
  }
  const known = new Map();
  for (let issue = 0; issue < total; issue++) {
    const [row, given] = [data.rows[data.image[issue]], data.given[issue]].map(String);
    known.set(JSON.stringify([row, data.classes[data.class[issue]], given]), issue);
  }
  return records.map(([row, , className, given, , word], i) => {
    const issue = known.get(JSON.stringify([row, unguard(className ?? ""), given]));
    const decision = Object.keys(WORDS).find((key) => WORDS[key] === word);
    const place = `in record ${i + 1}`;
    if (issue === undefined) {
      throw new Error(`Expected an issue of this page ${place}, found row ${row}, class "${className}", given ${given}. Import a file that was exported for the same issues.`);
    }
    if (!decision) throw new Error(`Expected accept or reject ${place}, found "${word}". Correct the file.`);
    return [issue, decision];
  });
}

async function importDecisions() {
  const file = $("import").files[0];
  if (!file) return;
  try {
    const made = readDecisions(await file.text());
    if (made.length) change(made);
    tell(`Imported ${numbers.format(made.length)} decisions.`);
  } catch (error) {
    tell(error.message);
  }
  $("import").value = ""; // so that the same file can be chosen again
}

// ---- keys and clicks ----

function cardsInARow() {
  const cards = [...$("gallery").children];
  return cards.filter((card) => card.offsetTop === cards[0].offsetTop).length || 1;
}

function decideSelected(decision) {
  if (!filtered.length) return;
  change([[filtered[selected], decision]]);
  select(selected + 1);
}

const KEYS = {
  ArrowLeft: () => select(selected - 1),
  ArrowRight: () => select(selected + 1),
  ArrowUp: () => select(selected - cardsInARow()),
  ArrowDown: () => select(selected + cardsInARow()),
  a: () => decideSelected("a"),
  r: () => decideSelected("r"),
  u: undo,
  e: () => $("export").click(), // does nothing while there is nothing to export
  "?": () => $("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const action = Object.hasOwn(KEYS, key) && KEYS[key];
  const busy = event.target.closest("input, select, dialog") || event.target.matches(".scroll");
  if (busy || !action || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  if (event.repeat && key.length === 1) return; // a key held down decides once
  tell("");
  action();
});

document.addEventListener("pointerdown", () => tell(""));

$("gallery").addEventListener("click", (event) => {
  const card = event.target.closest("li");
  if (!card) return;
  const issue = Number(card.dataset.issue);
  const button = event.target.closest("button");
  select(filtered.indexOf(issue), !button);
  // Pressing what is pressed takes the decision back.
  if (button) change([[issue, decisions[issue] === button.value ? "-" : button.value]]);
});

$("counts").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  $("class").value = $("class").value === button.value ? "" : button.value;
  applyFilters();
});

$("filters").addEventListener("input", applyFilters);
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("filters").addEventListener("reset", () => setTimeout(applyFilters)); // after the fields are empty
$("previous").addEventListener("click", () => select((pageOf(selected) - 1) * PAGE_SIZE, false));
$("next").addEventListener("click", () => select((pageOf(selected) + 1) * PAGE_SIZE, false));
$("page").addEventListener("change", () => {
  delete $("gallery").dataset.page; // what was typed may be no page
  select((Math.round($("page").value) - 1) * PAGE_SIZE, false);
});
$("undo").addEventListener("click", undo);
$("export").addEventListener("click", exportDecisions);
$("import").addEventListener("change", importDecisions);
$("help-button").addEventListener("click", KEYS["?"]);
// Another tab with the same page decided.
window.addEventListener("storage", (event) => {
  if (event.key !== data.key) return;
  restore();
  showProgress();
  for (const card of $("gallery").children) showDecision(card);
});

$("counts").open = window.innerWidth > 768; // not between the filters and the gallery of a small screen
fillFilters();
restore();
applyFilters();
showProgress();
select(filtered.findIndex((issue) => decisions[issue] === "-"), false); // go on where the last visit ended

"use strict";
/* All text that comes from a model or a visitor is set as text, never as HTML. */
const $ = id => document.getElementById(id);
const form = document.querySelector("form"), poems = $("poems");
const sliders = ["temperature", "top_k", "top_p", "max_new_tokens"];
const CUTS = {top_k: ["前 k", "top-k"], top_p: ["前 p", "top-p"], no_repeat_ngram_size: ["重複", "repeats"], constrain: ["格律", "rules"]};
let state;            // what the server told at the start
let chosen = null;    // {poem, place}: the character that the lesson is about
let running = null;   // stops the answers that are being written

/* Elements and words */

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (value !== undefined) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const both = (zh, en) => [zh + " ", make("span", {lang: "en"}, en)];

function tell(error) {
  if (error?.name === "AbortError") return;
  const words = error?.words ?? {
    zh: "連不上本頁的程式：請再開 verse page，然後再試。",
    en: "The page's program cannot be reached: start verse page again, then try again.",
  };
  $("error").replaceChildren(...both(words.zh, words.en));
}

const percent = share =>
  share === 0 ? "—" : share < 0.0005 ? "<0.1%" : (100 * share).toFixed(1) + "%";

/* Questions to the server */

async function ask(path, question, signal) {
  const response = await fetch(path, question === undefined ? {signal} : {
    method: "POST", body: JSON.stringify(question), headers: {"Content-Type": "application/json"}, signal,
  });
  if (!response.ok) throw {words: (await response.json()).error};
  return response;
}

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const found = (rest + value).split("\n");
    rest = found.pop();
    if (found.length) yield found.map(one => JSON.parse(one));
  }
}

function controls() {
  const rules = form.elements.constrain.value.split(",").filter(Boolean);
  return {...Object.fromEntries(sliders.map(name => [name, Number(form.elements[name].value)])), constrain: rules};
}

/* Poems */

const LINE = /([^，。？！；：、]+)([，。？！；：、]*)/gu;

/* Whether a text may still become a poem in form under a couplet of so many characters a line. */
function inForm(text, length) {
  const found = [...text.matchAll(LINE)];
  return found.length <= 6 && found.map(one => one[0]).join("") === text && found.every(([, line, marks]) =>
    /^\p{Script=Han}+$/u.test(line) && marks.length < 2
    && (marks ? [...line].length === length : [...line].length <= length));
}

const plainLines = text => [...text.matchAll(LINE)].map(([, line, marks]) =>
  ({characters: [...line].map(one => ({text: one})), marks, seal: ""}));

function character({text, rules, note, rhymes}, place) {
  const node = make("span", {class: "c"});
  if (text === "\n") node.append(make("b", {}, "↵"), "\n");
  else if (/^[\p{C}\p{M}\u2028\u2029]/u.test(text))
    node.append(make("b", {}, "U+" + text.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")));
  else node.append(text);
  if (rhymes) node.classList.add("rhymes");
  if (rules) {
    node.classList.add("broken");
    node.dataset.rules = rules;
    node.title = note;
  }
  if (place !== undefined) {
    node.dataset.place = place;
    for (const [name, value] of Object.entries({role: "button", tabindex: "-1", "aria-pressed": "false"}))
      node.setAttribute(name, value);
  }
  return node;
}

/* For each character of an answer the token that begins it, which may take several tokens. */
function placesOf(pieces) {
  const places = [];
  let first = null;
  pieces.forEach((piece, place) => {
    first ??= place;
    for (const _ of piece) {
      places.push(first);
      first = place;
    }
    if (piece) first = null;
  });
  return places;
}

/* Set a text: in columns if `set` or `length` say it is verse, else as it is. */
function lay(section, text, {set, length, pieces, tokens} = {}) {
  const places = pieces ? placesOf(pieces)[Symbol.iterator]() : null;
  const next = () => places?.next().value;
  const parts = set ? set.lines : inForm(text, length) ? plainLines(text) : null;
  const body = make("div", {class: parts ? "verse" : "raw", role: "group", "aria-label": section.dataset.name});
  if (parts)
    for (const {characters, marks, seal} of parts)
      body.append(make("span", {class: "line", "data-seal": seal || undefined},
        ...characters.map(one => character(one, next())),
        ...[...marks].map(one => character({text: one}, next()))));
  else body.append(...[...text].map(one => character({text: one}, next())));
  if (pieces && pieces.length && pieces.at(-1) === "" && tokens) {
    const end = character({text: "終"}, pieces.length - 1);
    end.classList.add("end");
    end.setAttribute("aria-label", "終 end");
    (body.lastElementChild?.classList.contains("line") ? body.lastElementChild : body).append(end);
  }
  const old = section.querySelector(".verse, .raw");
  if (old) old.replaceWith(body); else section.querySelector("h3").after(body);
  section.querySelector(".whole").textContent = text;
  section.querySelector(".found").textContent = set?.findings ?? "";
  const first = body.querySelector("[data-place]");
  if (first) first.tabIndex = 0;
}

function column(zh, en, name) {
  const section = make("section", {"data-name": `${zh} ${en}`},
    make("h3", {}, ...both(zh, en)), make("p", {class: "whole unseen"}), make("p", {class: "found"}));
  if (name) section.id = name;
  return section;
}

async function write() {
  stop();
  const stopper = running = new AbortController();
  const {signal} = stopper, seed = Number(form.elements.seed.value), now = controls();
  $("error").replaceChildren();
  $("said").textContent = "寫作中 writing";
  $("write").disabled = true;
  $("stop").hidden = false;
  try {
    const looked = await (await ask("couplet", {couplet: $("couplet").value}, signal)).json();
    const {couplet} = looked;
    $("couplet").value = couplet;
    doubt(looked);
    choose(null);
    const length = [...plainLines(couplet)[0]?.characters ?? []].length;
    poems.classList.toggle("seven", length === 7);
    poems.hidden = false;
    const given = column("首聯", "couplet");
    lay(given, couplet, {length});
    const columns = state.models.map(({name, zh, en}) => Object.assign(column(zh, en, name), {model: name}));
    const others = looked.answers.map(({zh, en, answer}) => {
      const section = column(zh, en);
      lay(section, answer.text, {set: answer});
      return section;
    });
    poems.replaceChildren(given, ...columns, ...others);
    columns.forEach(one => lay(one, "", {length}));
    const asked = {couplet, controls: now, seed};
    await Promise.all(columns.toReversed().map(one => writeOne(one, {...asked, model: one.model}, length, signal)));
    $("hint").hidden = false;
    const last = columns.at(-1);
    $("said").textContent = "寫完了 written: " + last.querySelector(".whole").textContent;
    if (!chosen && last.poem?.tokens.length) choose({poem: last.poem, place: 0});
  } catch (error) {
    stopper.abort();
    tell(error);
  } finally {
    if (running === stopper) {
      running = null;
      $("write").disabled = false;
      $("stop").hidden = true;
    }
  }
}

async function writeOne(section, asked, length, signal) {
  section.classList.add("writing");
  try {
    let done;
    for await (const events of lines(await ask("write", asked, signal))) {
      const last = events.at(-1);
      if (last.error) throw {words: last.error};
      done = last.done;
      if (done) continue;
      lay(section, last.text, {length});
      const line = [...last.text.matchAll(LINE)].findLast(one => one[2])?.[0];
      if (line && asked.model === state.models.at(-1).name) $("said").textContent = line;
    }
    if (!done) throw null;
    const {text, pieces, tokens, answer} = done;
    section.poem = {model: asked.model, couplet: asked.couplet, tokens, pieces, section};
    section.classList.add("live");
    lay(section, text, {set: answer, pieces, tokens});
  } finally {
    section.classList.remove("writing");
  }
}

function stop() {
  running?.abort();
}

function doubt({doubts, traditional}) {
  const parts = doubts.map(({zh, en}) => make("div", {}, ...both(zh, en)));
  if (traditional) {
    const button = make("button", {type: "button"}, ...both("改用繁體", "use the traditional ones"));
    button.addEventListener("click", () => {
      $("couplet").value = traditional;
      form.requestSubmit();
    });
    parts.push(button);
  }
  $("doubts").replaceChildren(...parts);
}

/* The lesson */

function choose(next, focus = false) {
  chosen = next;
  for (const node of document.querySelectorAll('[aria-pressed="true"]'))
    node.setAttribute("aria-pressed", "false");
  if (!chosen) {
    $("lesson").hidden = true;
    return;
  }
  const {section} = chosen.poem;
  const nodes = [...section.querySelectorAll("[data-place]")];
  const node = nodes.findLast(one => Number(one.dataset.place) <= chosen.place) ?? nodes[0];
  for (const one of nodes) one.tabIndex = one === node ? 0 : -1;
  node?.setAttribute("aria-pressed", "true");
  if (focus) node?.focus();
  explain();
}

let explaining = false, again = false;

/* One question at a time; what changed meanwhile is asked once that is answered. */
async function explain() {
  again = true;
  if (explaining) return;
  explaining = true;
  while (again && chosen) {
    again = false;
    const {poem: {model, couplet, tokens}, place} = chosen, asked = chosen;
    try {
      const response = await ask("explain", {model, couplet, tokens, place, controls: controls()});
      const answer = await response.json();
      if (asked === chosen) show(answer);
      $("error").replaceChildren();
    } catch (error) {
      tell(error);
    }
  }
  explaining = false;
}

function show({entropy, labels, chosen: here, likeliest}) {
  const {poem, place} = chosen, before = [...poem.pieces.slice(0, place).join("")].slice(-8).join("");
  $("lesson").hidden = false;
  $("lesson-title").replaceChildren(
    ...both("此處", "here"), " ", before.replace(/\s/gu, "↵"), make("span", {class: "here"}, here.label));
  const note = document.querySelector('.c[aria-pressed="true"]')?.title ?? "";
  const {model, drawn, left} = entropy[place], name = poem.section.dataset.name.split(" ");
  $("summary").replaceChildren(...both(
    `${note && note + "。"}${name[0]}第 ${place + 1} 字：模型給「${here.label}」${percent(here.model)}，解碼之後 ${percent(here.drawn)}。` +
    `可抽者 ${left} 字；熵從 ${model.toFixed(2)} 位元到 ${drawn.toFixed(2)}。`,
    `Token ${place + 1} (${name[1]}): the model gives it ${percent(here.model)}, decoding leaves it ` +
    `${percent(here.drawn)}. ${left} can be drawn; entropy from ${model.toFixed(2)} bits to ${drawn.toFixed(2)}.`));

  const most = Math.max(1, ...entropy.flatMap(one => [one.model, one.drawn]));
  const strip = $("entropy"), inside = strip.contains(document.activeElement);
  strip.replaceChildren(...entropy.map((one, number) => {
    const bars = make("i", {}, make("i"), make("i"));
    bars.children[0].style.height = 100 * one.model / most + "%";
    bars.children[1].style.height = 100 * one.drawn / most + "%";
    return make("div", {
      role: "option", tabindex: number === place ? "0" : "-1", "data-place": number,
      "aria-selected": String(number === place),
      "aria-label": `${number + 1} ${labels[number]}: ${one.model.toFixed(1)} bits, ${one.drawn.toFixed(1)} left`,
    }, bars, make("b", {}, labels[number]));
  }));
  const option = strip.children[place];
  strip.scrollLeft = option.offsetLeft - strip.offsetLeft - strip.clientWidth / 2;
  if (inside) option.focus();

  const rows = likeliest.some(one => one.token === here.token) ? likeliest : [...likeliest, here];
  const widest = Math.max(...rows.flatMap(one => [one.model, one.drawn]));
  document.querySelector("tbody").replaceChildren(...rows.map(one => {
    const bars = make("i", {}, make("i"), make("i"));
    bars.children[0].style.width = 100 * one.model / widest + "%";
    bars.children[1].style.width = 100 * one.drawn / widest + "%";
    const kind = [one.cut_by && "cut", one.token === here.token && "chosen"].filter(Boolean).join(" ");
    return make("tr", {class: kind || undefined, "data-token": one.token},
      make("th", {scope: "row"}, one.label), make("td", {class: "bars", "aria-hidden": "true"}, bars),
      ...["model", "tempered", "drawn"].map(key => make("td", {"data-share": one[key]}, percent(one[key]))),
      make("td", {}, ...(one.cut_by ? both(...(CUTS[one.cut_by] ?? [one.cut_by, one.cut_by])) : [])));
  }));
}

/* What people do */

function label(name) {
  const value = Number(form.elements[name].value);
  const words = {
    temperature: value ? value.toFixed(2) : "0 只取最可能 greedy",
    top_k: value || "不限 all",
    top_p: value < 1 ? value.toFixed(2) : "不限 all",
    max_new_tokens: value,
  }[name];
  form.elements[name].parentElement.querySelector("output").textContent = words;
  form.elements[name].setAttribute("aria-valuetext", words);
}

function setControls(values) {
  for (const [name, value] of Object.entries(values)) {
    const control = form.elements[name];
    if (!sliders.includes(name)) {
      control.value = value.join();
      continue;
    }
    control.max = Math.max(control.max, value);
    control.value = value;
    label(name);
  }
  explain();
}

form.addEventListener("submit", event => {
  event.preventDefault();
  write();
});
$("stop").addEventListener("click", stop);
$("random").addEventListener("click", async () => {
  try {
    $("couplet").value = (await (await ask("random")).json()).couplet;
    form.requestSubmit();
  } catch (error) {
    tell(error);
  }
});
$("reseed").addEventListener("click", () => {
  form.elements.seed.value = crypto.getRandomValues(new Uint32Array(1))[0] % 10000;
  if ($("couplet").value) form.requestSubmit();
});
form.addEventListener("input", event => {
  if (sliders.includes(event.target.name)) label(event.target.name);
  else if (event.target.name !== "constrain") return;
  explain();
});
form.addEventListener("click", ({target}) => {
  const presets = {
    own: state?.controls,
    homework: {temperature: 0.1, top_p: 0.3, top_k: 50},
    balanced: {temperature: 0.7, top_p: 0.9, top_k: 50},
    wild: {temperature: 1.5, top_p: 1, top_k: 0},
  };
  const values = presets[target.closest("[data-preset]")?.dataset.preset];
  if (values) setControls(values);
});

document.querySelector("main").addEventListener("click", ({target}) => {
  const node = target.closest("[data-place]"), poem = target.closest("section")?.poem ?? chosen?.poem;
  if (node && poem) choose({poem, place: Number(node.dataset.place)}, true);
});
document.querySelector("main").addEventListener("keydown", event => {
  const node = event.target.closest("[data-place]");
  const poem = event.target.closest("section")?.poem ?? chosen?.poem;
  if (!node || !poem || event.ctrlKey || event.metaKey || event.altKey) return;
  const upright = node.closest(".verse"), place = Number(node.dataset.place), last = poem.tokens.length - 1;
  const line = 1 + (upright ? [...upright.querySelector(".line").children].length - 1 : 9);
  const steps = upright
    ? {ArrowDown: 1, ArrowUp: -1, ArrowLeft: line, ArrowRight: -line}
    : {ArrowRight: 1, ArrowLeft: -1, ArrowDown: line, ArrowUp: -line};
  const goal = {Home: 0, End: last, Enter: place, " ": place}[event.key]
    ?? (event.key in steps ? Math.min(last, Math.max(0, place + steps[event.key])) : undefined);
  if (goal === undefined) return;
  event.preventDefault();
  choose({poem, place: goal}, !$("entropy").contains(node));
});

(async () => {
  try {
    state = await (await ask("state")).json();
    $("examples").append(...state.examples.map(one => make("option", {value: one})));
    form.elements.max_new_tokens.max = state.longest;
    form.elements.seed.value = state.seed;
    setControls(state.controls);
    if (!$("couplet").value) $("couplet").value = state.examples[0];
  } catch (error) {
    tell(error);
  }
})();

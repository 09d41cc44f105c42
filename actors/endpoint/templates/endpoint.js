"use strict";
const at = id => document.getElementById(id);
const text = (id, words) => { at(id).textContent = words; };
const percent = share => `${(100 * share).toFixed(1)} %`;
const words = name => name.replaceAll("_", " ");
const root = at("api").dataset.root; // the path prefix of a reverse proxy
const asksForAKey = at("key") !== null;
let key = "";
let models = [];

function address(path, parameters = {}) {
  const chosen = at("hospital").value;
  const query = new URLSearchParams(chosen ? { hospital: chosen, ...parameters } : parameters);
  return `${path}?${query}`;
}

// The answer as it is, or an error whose message is the server's own sentence.
async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(root + path, { ...options, headers: key ? { "X-API-Key": key } : {} });
  } catch {
    throw new Error("The server does not answer.");
  }
  if (response.ok) return response;
  const retry = response.headers.get("retry-after");
  let sentence = `The server answered ${response.status}.`;
  try { sentence = (await response.json()).error; } catch { /* not ours: the number must do */ }
  throw new Error(retry ? `${sentence} Try again in ${retry} s.` : sentence);
}

function fail(error) {
  text("status", "");
  at("verdict").className = "failed";
  at("verdict").hidden = false;
  at("found").hidden = true;
  text("label", "No answer");
  text("said", error.message);
  at("verdict").focus();
}

async function enter() {
  try {
    models = (await (await ask("/v1/models")).json()).models;
  } catch (error) {
    at("ask").hidden = true;
    text("model", error.message);
    return;
  }
  at("hospital").replaceChildren(...models.map(model => new Option(model.hospital_id)));
  at("choose").hidden = models.length < 2;
  at("ask").hidden = false;
  await choose();
}

async function choose() {
  const model = models.find(one => one.hospital_id === at("hospital").value);
  text("model", `Model of ${model.hospital_id}, version ${model.model_version}: ${model.classes.map(words).join(" or ")}, at ${model.size} pixels.`);
  await Promise.all([showExamples(), showRecent()]);
}

async function showExamples() {
  const { examples } = await (await ask(address("/v1/examples"))).json();
  at("try").hidden = examples.length === 0;
  at("examples").replaceChildren(...await Promise.all(examples.map(async example => {
    const scan = await (await ask(address(`/v1/examples/${encodeURIComponent(example.name)}`))).blob();
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.attacked = example.attacked;
    const image = document.createElement("img");
    image.src = URL.createObjectURL(scan);
    image.alt = "";
    const name = document.createElement("span");
    name.textContent = example.attacked ? "attacked" : "as it is";
    button.append(image, name);
    button.setAttribute("aria-label", `Example: ${words(example.truth)}, ${name.textContent}`);
    button.title = `truth: ${words(example.truth)}`;
    button.addEventListener("click", () => diagnose([new File([scan], example.name)], example));
    const item = document.createElement("li");
    item.append(button);
    return item;
  })));
}

async function diagnose(files, example = null) {
  text("status", files.length === 1 ? `Diagnosing ${files[0].name} …` : `Diagnosing ${files.length} files …`);
  at("verdict").setAttribute("aria-busy", "true");
  const body = new FormData();
  for (const file of files) body.append("scan", file);
  try {
    const result = await (await ask(address("/v1/diagnose", { pictures: "true" }), { method: "POST", body })).json();
    text("status", "");
    at("found").hidden = false;
    const several = result.answers.length > 1;
    at("more").hidden = !several;
    at("more").replaceChildren(...(several ? result.answers.map((answer, number) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `${number + 1}: ${answer.referral ? "refer" : words(answer.class_name)}`;
      button.addEventListener("click", () => show(result, number, null));
      return button;
    }) : []));
    show(result, result.studies[0].answer, example);
    await showRecent();
  } catch (error) {
    fail(error);
  } finally {
    at("verdict").setAttribute("aria-busy", "false");
  }
}

function show(result, number, example) {
  const answer = result.answers[number];
  [...at("more").children].forEach((button, place) => button.setAttribute("aria-pressed", String(place === number)));
  const verdict = at("verdict");
  verdict.hidden = false;
  verdict.className = answer.referral ? "refer" : answer.flagged ? "flagged" : "sure";
  text("label", answer.referral ? "Refer to a radiologist" : words(answer.class_name));
  const sentences = [];
  const foreign = answer.referral?.startsWith("another kind");
  if (foreign) sentences.push(answer.referral.endsWith("header")
    ? "The file's header names another kind of scan than the model was trained on."
    : "This does not look like the scans that the model was trained on.");
  else sentences.push(answer.referral
    ? `Too doubtful to stand: ${words(answer.class_name)}, at a confidence of ${percent(answer.confidence)}.`
    : `Confidence ${percent(answer.confidence)}.`);
  const study = result.studies.find(one => one.answer === number && one.scans > 1);
  if (study) sentences.push(`The most suspicious of ${study.scans} scans in the file${answer.slice === null ? "" : `: slice ${answer.slice}`}.`);
  else if (answer.slice !== null) sentences.push(`Slice ${answer.slice} of the volume.`);
  if (answer.flagged) sentences.push("The scan looks tampered with; it was purified and the purified copies voted.");
  else if (foreign) { /* how it was treated says nothing */ }
  else if (answer.purified) sentences.push("Nothing suspicious; it was purified lightly, as every scan here.");
  else sentences.push("Nothing suspicious; it was taken as it is.");
  if (example) sentences.push(`In truth this example is ${words(example.truth)}${example.attacked ? ", and it was attacked" : ""}.`);
  text("said", sentences.join(" "));
  const png = data => `data:image/png;base64,${data}`;
  at("seen").src = png(result.seen[number]);
  at("heat").hidden = answer.anomaly_map === null;
  if (answer.anomaly_map !== null) at("map").src = png(answer.anomaly_map);
  at("purified").src = png(answer.purified_scan);
  text("cleaned", answer.purified ? "Purified scan" : "Taken as it is");
  at("purified").alt = answer.purified ? "The purified scan" : "The scan as it was classified, not purified";
  const limit = answer.threshold, score = answer.anomaly_score;
  text("score", limit === null ? "not measured by this model" : `${score === null ? "not a number" : score.toFixed(2)}, ${answer.flagged ? "above" : "not above"} ${limit.toFixed(2)}`);
  at("gauge").hidden = limit === null;
  if (limit !== null) {
    const most = Math.max(2 * Math.abs(limit), Math.abs(score ?? 0), 1e-9);
    const place = value => `${Math.min(100, Math.max(0, 100 * value / most))}%`;
    at("gauge").className = answer.flagged ? "gauge over" : "gauge";
    at("gauge").firstElementChild.style.width = score === null ? "100%" : place(score);
    at("gauge").lastElementChild.style.left = `calc(${place(limit)} - 1px)`;
  }
  at("shares").replaceChildren(...Object.entries(answer.probabilities).map(([name, share]) => {
    const item = document.createElement("li");
    const [left, bar, right] = ["span", "i", "span"].map(kind => document.createElement(kind));
    left.textContent = words(name);
    bar.style.setProperty("--share", share);
    right.textContent = percent(share);
    item.append(left, bar, right);
    return item;
  }));
  text("depth", answer.purified ? `to noise step ${answer.depth} of 1000` : "none");
  const counts = new Map();
  for (const vote of answer.votes) counts.set(vote, (counts.get(vote) ?? 0) + 1);
  text("votes", [...counts].map(([name, count]) => `${count} × ${words(name)}`).join(", ") || "none were needed");
  text("version", `${answer.hospital_id}, version ${answer.model_version}`);
  text("request", answer.request_id);
  text("parts", Object.entries(answer.parts).map(([name, value]) => `${name} ${value === null ? "–" : value.toFixed(3)}`).join(", ") || "none");
  text("times", Object.entries(answer.milliseconds).map(([name, value]) => `${words(name)} ${value.toFixed(0)}`).join(", "));
  verdict.focus();
}

async function showRecent() {
  const { requests } = await (await ask("/v1/requests")).json();
  at("recent").hidden = requests.length === 0;
  const rows = requests.slice(0, 10).map(one => {
    const row = document.createElement("tr");
    const cells = [
      new Date(one.time).toLocaleTimeString(), one.hospital_id,
      one.referral?.startsWith("another kind") ? `refer (${one.referral})`
        : one.referral ? `refer (${words(one.class_name)})` : words(one.class_name), percent(one.confidence),
      one.anomaly_score === null ? "–" : `${one.anomaly_score.toFixed(2)}${one.flagged ? " flagged" : ""}`,
      one.depth ? `step ${one.depth}` : "no",
    ];
    row.append(...cells.map(value => { const cell = document.createElement("td"); cell.textContent = value; return cell; }));
    return row;
  });
  document.querySelector("#recent tbody").replaceChildren(...rows);
}

at("who").addEventListener("submit", event => { event.preventDefault(); key = at("key")?.value.trim() ?? ""; enter(); });
at("hospital").addEventListener("change", () => choose().catch(fail));
at("file").addEventListener("change", event => {
  const files = [...event.target.files];
  event.target.value = "";  // so that the same file may be chosen again
  if (files.length) diagnose(files);
});
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, event => event.preventDefault());
at("drop").addEventListener("dragover", () => at("drop").classList.add("over"));
at("drop").addEventListener("dragleave", () => at("drop").classList.remove("over"));
at("drop").addEventListener("drop", event => {
  at("drop").classList.remove("over");
  const files = [...event.dataTransfer.files];
  if (files.length) diagnose(files);
});
if (asksForAKey) at("key").focus(); else enter();

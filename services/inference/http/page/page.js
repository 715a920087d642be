// The same request as any client's, twice: with the adapter's weight 0 and with the slider's.
const at = (id) => document.getElementById(id);
const kept = sessionStorage;
const painting = { base: null, fused: null };

const settings = await (await fetch("page/settings.json")).json();
at("model").textContent = settings.model;
at("scale").max = at("largest").textContent = settings.largest;
at("key-label").hidden = !settings.keys;
at("key").value = kept.getItem("key") ?? "";

function say(words, wrong = false) {
  at("status").textContent = words;
  at("status").classList.toggle("error", wrong);
}

async function paint(which, scale) {
  painting[which]?.abort(); // what nobody wants to see any more is given up by the service too
  const stop = (painting[which] = new AbortController());
  const image = at(which);
  image.classList.add("busy");
  try {
    const headers = { "Content-Type": "application/json" };
    if (at("key").value) headers.Authorization = `Bearer ${at("key").value}`;
    const body = JSON.stringify({ prompt: at("prompt").value, seed: Number(at("seed").value), adapter_scale: scale });
    const began = performance.now();
    const answer = await fetch("v1/images/generations", { method: "POST", headers, body, signal: stop.signal });
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.error?.message ?? `The service answered ${answer.status}.`);
    const { data, output_format, version } = told;
    image.src = `data:image/${output_format};base64,${data[0].b64_json}`;
    image.alt = `${at("prompt").value}, weight ${scale}`;
    await image.decode();
    image.dataset.scale = scale;
    image.dataset.version = version;
    return Math.round(performance.now() - began);
  } finally {
    if (painting[which] === stop) image.classList.remove("busy");
  }
}

async function tell(work) {
  say("Painting ...");
  at("generate").disabled = true;
  try {
    const times = await Promise.all(work);
    say(`Painted in ${Math.max(...times)} ms by version ${at("fused").dataset.version.slice(0, 12)}.`);
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
  } finally {
    at("generate").disabled = false;
  }
}

const weight = () => Number(at("scale").value);

function show() {
  at("scale-value").textContent = weight().toFixed(2);
  const name = { 0: "base model", 1: "fused model" }[weight()] ?? `weight ${weight().toFixed(2)}`;
  at("fused-caption").textContent = name;
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  kept.setItem("key", at("key").value);
  tell([paint("base", 0), paint("fused", weight())]);
});
at("dice").addEventListener("click", () => {
  at("seed").value = Math.floor(Math.random() * 2 ** 32);
  at("form").requestSubmit();
});
at("scale").addEventListener("input", show);
at("scale").addEventListener("change", () => {
  if (at("fused").dataset.version) tell([paint("fused", weight())]);
});
show();
document.body.dataset.ready = "yes";

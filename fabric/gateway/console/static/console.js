// Charts and small comforts. Every page works without this file.
"use strict";

const drawn = new Map();

const colour = (name) => {
  const styles = getComputedStyle(document.documentElement);
  return styles.getPropertyValue(`--${name}`).trim() || styles.getPropertyValue("--other").trim();
};

const day = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 10);
const clock = (seconds) => new Date(seconds * 1000).toISOString().slice(11, 16);
// Told apart without colours, too.
const DASHES = { gpu: [6, 3], cloud: [2, 3] };

function draw(place) {
  const text = place.dataset.chart;
  const known = drawn.get(place);
  if (known && known.text === text && known.width === place.clientWidth) return;
  const told = JSON.parse(text);
  const data = [told.x, ...told.series.map((one) => one.y)];
  if (known && known.width === place.clientWidth && known.plot.series.length === data.length) {
    known.plot.setData(data);
    known.text = text;
    return;
  }
  if (known) known.plot.destroy();
  const ink = colour("soft");
  const axis = { stroke: ink, grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1 } };
  const money = (value) => (value ? `$${Number(value.toPrecision(3))}` : "$0");
  const unit = told.unit === "US$" ? money : (value) => `${value} ${told.unit}`;
  const plot = new uPlot(
    {
      width: place.clientWidth - 20,
      height: 210,
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
      cursor: { drag: { x: false, y: false } },
      scales: { y: { range: (_, low, high) => [0, high > 0 ? high * 1.08 : 1] } },
      axes: [
        { ...axis, space: told.day ? 100 : 60, values: (_, ticks) => ticks.map((at) => (told.day ? day : clock)(at)) },
        { ...axis, size: 72, values: told.unit === "US$" ? (_, ticks) => ticks.map(money) : undefined, incrs: told.day ? undefined : [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 50000] },
      ],
      series: [
        { label: told.day ? "day" : "time", value: (_, at) => (at == null ? "–" : (told.day ? day : clock)(at)) },
        ...told.series.map((one) => ({
          label: one.name,
          stroke: colour(one.name),
          width: 2,
          dash: DASHES[one.name],
          points: { show: told.x.length < 40, size: 5 },
          value: (_, value) => (value == null ? "–" : unit(value)),
        })),
      ],
    },
    data,
    place,
  );
  drawn.set(place, { plot, text, width: place.clientWidth });
}

function drawAll() {
  for (const place of drawn.keys()) if (!place.isConnected) drawn.delete(place);
  document.querySelectorAll("[data-chart]").forEach(draw);
}

function redraw() {
  for (const { plot } of drawn.values()) plot.destroy();
  drawn.clear();
  drawAll();
}

function selectAll(event) {
  const all = event.target.closest("[data-all]");
  if (!all) return;
  const form = all.closest("form");
  form.querySelectorAll(`input[name="${all.dataset.all}"]`).forEach((box) => { box.checked = all.checked; });
}

// A choice is a search of its own.
function submitEager(event) {
  if (event.target.matches("form[data-eager] select")) event.target.form.requestSubmit();
}

// A live page whose stream is away says so. Streams that broke off are begun again by hx-sse, ones that never began here.
const AGAIN_MS = 2000;
const LIVE = "hx-sse:connect";

function away(is) {
  document.getElementById("away").hidden = !is;
}

function beginAgain(place) {
  away(true);
  setTimeout(() => { if (place.isConnected) htmx.ajax("GET", place.getAttribute(LIVE), { source: place }); }, AGAIN_MS);
}

// An answer that isn't a stream (the store is away, say) mustn't take the page's place.
function notAStream(event) {
  const { ctx } = event.detail;
  const place = ctx.sourceElement;
  if (!place.hasAttribute(LIVE) || ctx.response.status === 401 || ctx.response.status === 200) return;
  event.preventDefault();
  beginAgain(place);
}

function neverBegan(event) {
  const { sourceElement: place } = event.detail.ctx || {};
  if (place && place.hasAttribute(LIVE)) beginAgain(place);
}

function brokeOff(event) {
  if (event.detail.status === 401) location.reload(); // the session has ended: to the login
  else away(true);
}

document.addEventListener("htmx:before:response", notAStream);
document.addEventListener("htmx:error", neverBegan);
document.addEventListener("htmx:sse:error", brokeOff);
document.addEventListener("htmx:sse:after:connection", () => away(false));
document.addEventListener("change", selectAll);
document.addEventListener("change", submitEager);
document.addEventListener("htmx:after:swap", drawAll);
window.addEventListener("resize", drawAll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
drawAll();
new MutationObserver(drawAll).observe(document.body, { subtree: true, attributes: true, attributeFilter: ["data-chart"] });

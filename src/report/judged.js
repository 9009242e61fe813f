"use strict";
// Fills the page of a judged set of crystals from the JSON in #data.

const {
  about, tiles, table, choices, samples, elements, histograms, frequencies, energies, map, settings,
} = JSON.parse(document.getElementById("data").textContent);

const CARDS_PER_PAGE = 6;
const SETS = [["generated", PALETTE[0]], ["reference", PALETTE[1]]];
const MAX_RATIO = 4; // of shares of elements; colors do not change beyond it

const percents = shares => shares.map(share => 100 * share);

// Summary

$("source").append(...about.flatMap(([name, value], i) =>
  [`${i ? " · " : ""}${name} `, el("code", {}, value)]));
$("tiles").append(...tiles.map(([name, value, interval, note]) => {
  const spread = interval ? ` ± ${(50 * (interval[1] - interval[0])).toFixed(1)}` : "";
  const text = isPresent(value) ? `${(100 * value).toFixed(1)}${spread} %` : "–";
  return tile(name, text, note);
}));
const line = (cells, tag) =>
  el("tr", {}, ...cells.map((cell, i) => el(i ? tag : "th", {}, cell)));
$("tables").append(el("table", {id: "figures"},
  el("thead", {}, line(["", "generated", "real crystals"], "th")),
  el("tbody", {}, ...table.map(row => line(row, "td")))));

// Crystals

$("settings").textContent = settings;
const most = Math.max(1, ...choices.map(choice => choice.samples.length));
const cards = Array.from({length: Math.min(CARDS_PER_PAGE, most)},
  () => new SampleCard(elements, true));
$("grid").append(...cards.map(card => card.node));
const buttons = choices.map(choice => el("button", {
  type: "button", textContent: `${choice.name} (${choice.samples.length})`,
  onclick: () => choose(choice),
}));
$("choices").append(...buttons);
function choose(choice) {
  buttons.forEach((button, k) => button.setAttribute("aria-pressed", choices[k] === choice));
  $("note").textContent = choice.note;
  $("nothing").hidden = choice.samples.length > 0;
  paginate(cards, choice.samples.length, (card, k) => card.show(samples[choice.samples[k]]));
}
choose(choices[0]);

// Distributions

for (const {title, x, width, shares} of histograms) {
  const areNames = typeof x[0] === "string"; // of groups, whose bars stand side by side
  const node = el("div", {className: x.length > 10 && areNames ? "chart wide" : "chart"});
  $("histograms").append(node);
  chart(node, () => ({
    traces: SETS.map(([name, color], k) => ({
      type: "bar", name, x, y: percents(shares[k]), width, marker: {color},
      opacity: areNames ? 0.85 : 0.6,
      hovertemplate: `%{x${areNames ? "" : ":.4~g"}}: %{y:.2f} %<extra></extra>`,
    })),
    layout: {
      ...(areNames ? {barmode: "group"} : {barmode: "overlay", bargap: 0}),
      xaxis: {title: {text: title}, type: areNames ? "category" : "linear"},
      yaxis: {title: {text: "share, %"}},
    },
  }), 280);
}

// Elements

/** The color of a ratio of shares: blue below 1, orange above it, on a logarithmic scale. */
function ratioColor(ratio) {
  const strength = Math.min(1, Math.abs(Math.log(ratio)) / Math.log(MAX_RATIO));
  return `color-mix(in srgb, ${ratio < 1 ? PALETTE[0] : PALETTE[1]} ${
    (100 * strength).toFixed(0)}%, var(--panel))`;
}

for (const {symbol, row, column, ours, theirs} of frequencies) {
  const isThere = ours > 0 || theirs > 0;
  const text = theirs > 0 ? (ours / theirs).toFixed(2) : ours > 0 ? "new" : "";
  const cell = el("div", {
    className: isThere ? "element" : "element absent",
    title: `${symbol}: ${percent(ours)} of the generated atoms, ${percent(theirs)} of the real ones`,
  }, el("b", {}, symbol), el("small", {}, text));
  cell.style.gridArea = `${row} / ${column}`;
  if (isThere) cell.style.background = ratioColor(theirs > 0 ? Math.max(ours / theirs, 1e-9) : 1e9);
  $("periodic").append(cell);
}
$("scale").append(...[1 / MAX_RATIO, 0.5, 1, 2, MAX_RATIO].map((ratio, i, all) => {
  const chip = el("i");
  chip.style.background = ratioColor(ratio);
  const beyond = i === 0 ? " or less" : i === all.length - 1 ? " or more" : "";
  return el("span", {}, chip, `${ratio}${beyond}`);
}));

// Energies and latents

if (energies && energies.x.length) {
  $("energies-note").textContent = `${energies.source}; ${energies.count.toLocaleString("en")} ` +
    "crystals whose hull is known. The first and the last bar hold what is beyond them; the dashed " +
    `line is at ${energies.metastable} eV/atom.`;
  chart($("energy-chart"), ({text}) => ({
    traces: [{
      type: "bar", x: energies.x, y: percents(energies.shares[0]), width: energies.width,
      marker: {color: SETS[0][1]}, hovertemplate: "%{x:.3f} eV/atom: %{y:.2f} %<extra></extra>",
    }],
    layout: {
      bargap: 0, xaxis: {title: {text: energies.title}}, yaxis: {title: {text: "share, %"}},
      shapes: [0, energies.metastable].map((x, i) => ({
        type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1,
        line: {color: text, width: 1, dash: i ? "dash" : "solid"},
      })),
    },
  }), 300);
} else $("energies").remove();

if (map) {
  chart($("points"), () => ({
    traces: map.sets.map(set => ({
      type: "scatter", mode: "markers", name: set.name, x: set.x, y: set.y,
      text: set.ids.map((id, i) => `<b>${escaped(set.formulas[i])}</b> ${escaped(id)}`),
      hovertemplate: "%{text}<extra></extra>",
      marker: {color: Object.fromEntries(SETS)[set.name], size: 6, opacity: 0.6},
    })),
    layout: {
      xaxis: {title: {text: map.axes[0]}, zeroline: false},
      yaxis: {title: {text: map.axes[1]}, zeroline: false},
    },
  }), 560);
} else $("map").remove();

$("contents").append(...[...document.querySelectorAll("section")].map(section =>
  el("a", {href: `#${section.id}`}, section.querySelector("h2").textContent)));

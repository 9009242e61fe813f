"use strict";
// Fills the page from the JSON in #data. Text from the data is only inserted as text nodes.

const {
  metrics, matchers, noise_matchers: noiseMatchers, crystals, pairs, elements, maps, training, total,
} = JSON.parse(document.getElementById("data").textContent);

// no line break between a setting and its value
for (const matcher of [...matchers, ...noiseMatchers]) {
  matcher.settings = matcher.settings.replace(/ (?=\d)/g, "\u00a0");
}

const PAIRS_PER_PAGE = 6;
const MAX_CATEGORIES = 10; // colors in a map; other categories are gray
const LABELS = {
  most_common_element: "most common element", heaviest_element: "heaviest element",
  crystal_system: "crystal system", num_atoms: "number of atoms", matched: "matched",
  matched_default: "matched (pymatgen's defaults)", rms: "rms",
  rms_default: "rms (pymatgen's defaults)",
  atom_types_right: "atom type accuracy", coords_rmsd: "atom displacement, RMSD (Å)",
  lengths_error: "error of lengths (Å)", angles_error: "error of angles (°)",
  volume_error: "relative error of the volume", valid: "valid", spacegroup: "space group",
  spacegroup_reconstructed: "space group, reconstructed", valid_original: "original is valid",
};
const MAIN_COLORINGS = ["crystal_system", "most_common_element", "heaviest_element", "num_atoms",
  "matched", "rms"];
const NO_COLORING = ["id", "formula", "reason", "status", "status_default", "spacegroup",
  "spacegroup_reconstructed"];

// Small helpers

const percents = fractions => fractions.map(x => isPresent(x) ? 100 * x : null);
const label = name => LABELS[name] ?? name.replaceAll("_", " ");

/** Remove an element that has nothing to show. */
const drop = id => $(id).remove();

/** A table; rows without any value are left out. */
function table(caption, head, rows) {
  const filled = rows.filter(row => row.slice(1).some(cell => cell !== "–"));
  if (!filled.length) return "";
  const line = (cells, tag) =>
    el("tr", {}, ...cells.map((cell, i) => el(i ? tag : "th", {}, cell)));
  return el("table", {}, el("caption", {}, caption),
    el("thead", {}, line(head, "th")), el("tbody", {}, ...filled.map(row => line(row, "td"))));
}

// Charts

const rateAxis = (title = "match rate, %") => ({title: {text: title}, range: [0, 102]});

// Summary

function showSummary() {
  $("source").append(...[
    metrics.checkpoint && ["checkpoint ", metrics.checkpoint],
    metrics.data_dir && ["data ", metrics.data_dir],
    metrics.split && ["split ", metrics.split],
  ].filter(Boolean).flatMap(([name, value], i) => [i ? " · " : "", name, el("code", {}, value)]));

  const [cdvae, strict] = matchers;
  $("tiles").append(
    tile("Match rate", percent(metrics.match_rate), `${cdvae.name}: ${cdvae.settings}`),
    tile("Match rate", percent(metrics.match_rate_default), `${strict.name}: ${strict.settings}`),
    tile("RMSE", number(metrics.rmse), `matched pairs, ${cdvae.name}`),
    tile("cRMSE", number(metrics.crmse), `all pairs, ${cdvae.name}`),
    tile("Atom types", percent(metrics.atom_type_accuracy), "fraction correct"),
    tile("Lengths", number(metrics.lengths_mae, " Å"), "mean absolute error"),
    tile("Angles", number(metrics.angles_mae, "°", 3), "mean absolute error"),
  );

  const sampled = metrics.sampled ?? {}, gated = metrics.gated ?? {};
  const both = (source, key, show) => matchers.map(({suffix}) => show(source[key + suffix]));
  $("tables").append(
    table(`Structure matching${metrics.matcher ? `, matcher: ${metrics.matcher}` : ""}`, ["", ...matchers.map(m => `${m.name}: ${m.settings}`)], [
      ["match rate", ...both(metrics, "match_rate", percent)],
      ["RMSE of matched pairs, in units of (V/N)^(1/3)", ...both(metrics, "rmse", number)],
      ["cRMSE, unmatched pairs count as stol", ...both(metrics, "crmse", number)],
      ["METRe, a match with any reconstruction counts", ...both(metrics, "metre", percent)],
      ["matched and valid", ...both(gated, "match_rate", percent)],
      ["match rate, decoding a posterior sample", ...both(sampled, "match_rate", percent)],
      ["RMSE, decoding a posterior sample", ...both(sampled, "rmse", number)],
    ]),
    table("Errors per atom and cell", ["", "posterior mean", "posterior sample"], [
      ["atom type accuracy", percent, "atom_type_accuracy"],
      ["fractional coordinates, RMSE", number, "frac_coords_rmse"],
      ["atom displacement, RMSD", v => number(v, " Å"), "coords_rmsd"],
      ["lengths, mean absolute error", v => number(v, " Å"), "lengths_mae"],
      ["angles, mean absolute error", v => number(v, "°", 3), "angles_mae"],
      ["volume, mean relative error", percent, "volume_mape"],
    ].map(([name, show, key]) => [name, show(metrics[key]), show(sampled[key])])),
  );
  const notes = [
    isPresent(gated.valid) && `${percent(gated.valid)} of the reconstructions and ` +
      `${percent(gated.valid_originals)} of the originals have a valid geometry and composition.`,
    metrics.match_timeouts &&
      `${metrics.match_timeouts} comparisons timed out and count as unmatched.`,
  ];
  $("tables").append(el("p", {}, notes.filter(Boolean).join(" ")));
}

// Pairs

const reasonOf = i => crystals.reason?.[i] || (crystals.status?.[i] ?? "unmatched");

/** A crystal next to its reconstruction; both rotate together. */
class PairCard {
  constructor() {
    const camera = new Camera();
    this.camera = camera;
    this.title = el("h3");
    this.facts = el("p", {className: "facts"});
    this.legend = el("p", {className: "legend"});
    const canvases = ["original", "reconstruction"].map(name => {
      const canvas = el("canvas", {ariaLabel: name});
      return [canvas, el("figure", {}, canvas, el("figcaption", {}, name))];
    });
    this.node = el("article", {className: "pair"}, this.title,
      el("div", {className: "canvases"}, ...canvases.map(([, figure]) => figure)),
      this.legend, this.facts);
    this.views = canvases.map(([canvas]) => new CrystalView(canvas, camera, elements));
  }

  show(i) {
    this.index = i;
    this.node.dataset.id = crystals.id[i];
    this.title.replaceChildren(...formulaNodes(crystals.formula[i]),
      el("code", {}, crystals.id[i]));
    const matched = crystals.matched[i];
    this.facts.replaceChildren(
      el("b", {className: matched ? "good" : "bad"}, matched ? "matched" : "not matched"),
      matched ? `, rms ${number(crystals.rms[i])}` : `: ${reasonOf(i)}`,
      ` · ${crystals.num_atoms[i]} atoms`,
      crystals.spacegroup ? ` · space group ${spaceGroups(i)}` : "");
    this.legend.replaceChildren(...legendNodes(pairs[i], elements));
    this.views.forEach((view, k) => view.show(pairs[i][k]));
    this.camera.reset();
  }
}

function spaceGroups(i) {
  const old = crystals.spacegroup[i] ?? "–";
  const column = crystals.spacegroup_reconstructed;
  const rebuilt = column ? column[i] ?? "–" : old;
  return old === rebuilt ? `${old}` : `${old} → ${rebuilt}`;
}

// Numbers of atoms by element, of a formula such as "Na2O" or a list such as "Na-O"
function countsOf(formula) {
  const counts = {};
  for (const [, symbol, number] of formula.matchAll(/([A-Z][a-z]?)(\d*)/g)) {
    counts[symbol] = (counts[symbol] ?? 0) + Number(number || 1);
  }
  return counts;
}

// The crystals with an ID, or else with a formula, or the elements of it, or else a part of an ID
function findCrystals(text) {
  const exact = crystals.id.indexOf(text);
  if (exact >= 0 || !text) return exact >= 0 ? [exact] : [];
  const all = crystals.id.map((_, i) => i);
  if (/^(?:[A-Z][a-z]?\d*[\s,-]*)+$/.test(text)) {
    const wanted = Object.entries(countsOf(text));
    const byElements = all.filter(i => {
      const counts = countsOf(crystals.formula[i]);
      return wanted.every(([symbol]) => counts[symbol]);
    });
    const byFormula = byElements.filter(i => {
      const counts = countsOf(crystals.formula[i]);
      const ratios = wanted.map(([symbol, number]) => counts[symbol] / number);
      return Object.keys(counts).length === wanted.length && new Set(ratios).size === 1;
    });
    const found = byFormula.length || /\d/.test(text) ? byFormula : byElements;
    if (found.length) return found;
  }
  return all.filter(i => crystals.id[i].toLowerCase().includes(text.toLowerCase()));
}

function showPairs() {
  const cards = Array.from({length: Math.min(PAIRS_PER_PAGE, pairs.length)}, () => new PairCard());
  $("grid").append(...cards.map(card => card.node));
  const goTo = paginate(cards, pairs.length, (card, k) => card.show(k));
  $("ids").append(...crystals.id.map((id, i) => el("option", {value: id}, crystals.formula[i])));
  let sought = {text: "", found: [], at: 0};
  const choose = again => {
    const text = $("choose").value.trim();
    if (text === sought.text && !again) return;
    sought = text === sought.text
      ? {...sought, at: (sought.at + 1) % Math.max(sought.found.length, 1)}
      : {text, found: findCrystals(text), at: 0};
    const number = sought.found.length;
    $("not-found").textContent = !text ? "" : !number ? `${text} is not on this page`
      : number > 1 ? `${sought.at + 1} of ${number}: Enter for the next` : "";
    if (!number) return;
    const i = sought.found[sought.at];
    goTo(Math.floor(i / PAIRS_PER_PAGE));
    cards[i % PAIRS_PER_PAGE].node.classList.add("chosen");
    cards[i % PAIRS_PER_PAGE].node.scrollIntoView({block: "nearest"});
  };
  $("choose").onkeydown = event => { if (event.key === "Enter") choose(true); };
  $("choose").onchange = () => choose(false);
  if (pairs.length < total) {
    $("limit").textContent = `${pairs.length.toLocaleString("en")} of ` +
      `${total.toLocaleString("en")} crystals are shown: half are the worst, half are drawn at ` +
      "random from the others. All metrics and charts cover all crystals.";
  }
}

// Match rate by size and element

function showMatch() {
  const rows = metrics.by_num_atoms ?? [];
  if (rows.length) {
    const x = rows.map(row => row.num_atoms);
    chart($("by-num-atoms"), () => ({
      traces: [
        ...matchers.map(({suffix, settings, color}) => ({
          type: "bar", name: settings, x, y: percents(rows.map(row => row[`match_rate${suffix}`])),
          marker: {color}, hovertemplate: "%{x} atoms: %{y:.1f} %<extra></extra>",
        })),
        {
          type: "bar", x, y: rows.map(row => row.crystals), text: rows.map(row => row.crystals),
          textposition: "outside", cliponaxis: false, yaxis: "y2", showlegend: false,
          marker: {color: NEUTRAL}, hovertemplate: "%{x} atoms: %{y} crystals<extra></extra>",
        },
      ],
      layout: {
        xaxis: {title: {text: "atoms per cell"}, dtick: x.length > 30 ? 4 : 1, anchor: "y2"},
        yaxis: {...rateAxis(), domain: [0.36, 1]},
        yaxis2: {title: {text: "crystals"}, domain: [0, 0.24], nticks: 3},
        barmode: "group", bargap: 0.2,
      },
    }), 400);
  } else drop("by-num-atoms");

  const found = Object.entries(metrics.by_element ?? {}).filter(([, row]) => isPresent(row.match_rate));
  found.sort(([, a], [, b]) => a.match_rate - b.match_rate || b.crystals - a.crystals);
  if (found.length) {
    chart($("by-element"), () => ({
      traces: [{
        type: "bar", x: found.map(([symbol]) => symbol),
        y: percents(found.map(([, row]) => row.match_rate)), marker: {color: matchers[0].color},
        customdata: found.map(([, row]) => [row.crystals, row.atoms,
          isPresent(row.atom_type_accuracy) ? 100 * row.atom_type_accuracy : "–"]),
        hovertemplate: "%{x}: %{y:.1f} % of %{customdata[0]} crystals<br>" +
          "atom types: %{customdata[2]:.1f} % of %{customdata[1]} atoms correct<extra></extra>",
      }],
      layout: {
        title: {
          text: `Crystals that contain each element, worst first (${matchers[0].settings})`,
          font: {size: 14}, x: 0,
        },
        xaxis: {type: "category", tickangle: 0, tickfont: {size: 10}, dtick: 1, showgrid: false},
        yaxis: rateAxis(),
      },
    }), 300);
  } else drop("by-element");
  if (!rows.length && !found.length) drop("match");
}

function showNoise() {
  const noise = metrics.noise;
  if (!noise) return drop("noise");
  chart($("noise-curve"), () => ({
    traces: noiseMatchers.filter(({suffix}) => noise[`match_rate${suffix}`]).map(
      ({suffix, settings, color}) => ({
        type: "scatter", mode: "lines+markers", x: noise.levels,
        name: settings + (isPresent(noise[`area${suffix}`])
          ? `; area <b>${number(noise[`area${suffix}`], "", 3)}</b>` : ""),
        y: percents(noise[`match_rate${suffix}`]), marker: {color, size: 8}, line: {color},
        hovertemplate: "noise %{x}: %{y:.1f} %<extra></extra>",
      })),
    layout: {
      xaxis: {title: {text: "noise on the latents, in standard deviations of each channel"}},
      yaxis: rateAxis(),
    },
  }));
}

// Map

/** Traces that color points by a column: a scale for numbers, else one trace per category. */
function coloredTraces([x, y], name) {
  const values = crystals[name];
  const trace = (indices, more) => ({
    type: "scatter", mode: "markers", x: indices.map(i => x[i]), y: indices.map(i => y[i]),
    customdata: indices, text: indices.map(hover), hovertemplate: "%{text}<extra></extra>", ...more,
  });
  const present = values.map((_, i) => i).filter(i => isPresent(values[i]));
  const absent = values.map((_, i) => i).filter(i => !isPresent(values[i]));
  const gray = {marker: {color: NEUTRAL, size: 6, opacity: 0.5}};
  const background = absent.length ? [trace(absent, {name: "none", ...gray})] : [];
  if (present.length && typeof values[present[0]] === "number") {
    const sorted = present.map(i => values[i]).sort((a, b) => a - b);
    const quantile = q => sorted[Math.round(q * (sorted.length - 1))];
    return [...background, trace(present, {
      showlegend: false,
      marker: {
        color: present.map(i => values[i]), colorscale: "Viridis",
        cmin: quantile(0.01), cmax: quantile(0.99),
        showscale: true, size: 7, opacity: 0.85,
        colorbar: {
          title: {text: escaped(label(name)), side: "right"}, thickness: 12, outlinewidth: 0,
        },
      },
    })];
  }
  const categories = Map.groupBy(present, i => String(values[i]));
  const bySize = [...categories].sort(([, a], [, b]) => b.length - a.length);
  const largest = bySize.slice(0, MAX_CATEGORIES);
  const rest = bySize.slice(MAX_CATEGORIES).flatMap(([, indices]) => indices);
  if (rest.length) background.push(trace(rest, {name: "others", ...gray}));
  return [...background, ...largest.map(([name, indices], k) => trace(indices,
    {name: escaped(name), marker: {color: PALETTE[k], size: 7, opacity: 0.85}}))];
}

function hover(i) {
  return [
    `<b>${escaped(crystals.formula[i])}</b> ${escaped(crystals.id[i])}`,
    `${crystals.num_atoms[i]} atoms` +
      (crystals.spacegroup ? `, space group ${escaped(spaceGroups(i))}` : ""),
    crystals.matched[i] ? `rms ${number(crystals.rms[i])}` : `not matched: ${escaped(reasonOf(i))}`,
  ].join("<br>");
}

function showMap() {
  if (!maps.length) return drop("map");
  const others = Object.keys(crystals).filter(
    name => !MAIN_COLORINGS.includes(name) && !NO_COLORING.includes(name));
  others.sort((a, b) => (a in LABELS) - (b in LABELS)); // properties first
  const choices = [...MAIN_COLORINGS.filter(name => crystals[name]), ...others];
  $("color-by").append(...choices.map(name => el("option", {value: name}, label(name))));
  let plane = maps[0];
  const card = new PairCard();
  const details = el("dl");
  $("viewer").append(card.node, details);

  const draw = chart($("points"), ({text}) => ({
    traces: [...coloredTraces(plane.points, $("color-by").value), {
      type: "scatter", mode: "markers", hoverinfo: "skip", showlegend: false,
      x: [plane.points[0][card.index]], y: [plane.points[1][card.index]],
      marker: {size: 15, symbol: "circle-open", color: text, line: {width: 2}},
    }],
    layout: {
      xaxis: {title: {text: plane.axes[0]}, zeroline: false},
      yaxis: {title: {text: plane.axes[1]}, zeroline: false}, margin: {l: 60, r: 10, t: 60, b: 50},
    },
  }), 560);
  const show = i => {
    card.show(i);
    details.replaceChildren(...others.flatMap(name => [
      el("dt", {}, label(name)),
      el("dd", {}, typeof crystals[name][i] === "number"
        ? String(+crystals[name][i].toPrecision(4)) : String(crystals[name][i] ?? "–"))]));
    draw();
  };
  const buttons = maps.map(each => el("button", {
    type: "button", textContent: each.name, onclick: () => {
      plane = each;
      buttons.forEach((button, k) => button.setAttribute("aria-pressed", maps[k] === each));
      draw();
    },
  }));
  if (maps.length > 1) $("methods").append(...buttons);
  buttons[0].setAttribute("aria-pressed", true);
  $("color-by").onchange = draw;
  $("points").on("plotly_click", event => {
    const i = event.points[0].customdata;
    if (isPresent(i)) show(i);
  });
  show(0);
}

// Latent space, training

function showLatent() {
  const {latent, symmetry, space_group: kept} = metrics;
  if (latent) {
    const x = latent.kl_per_channel.map((_, i) => i + 1);
    const bars = (y, name, axis, color) => ({
      type: "bar", x, y, name, yaxis: axis, xaxis: axis.replace("y", "x"), marker: {color},
      hovertemplate: `channel %{x}: %{y:.3f}<extra>${name}</extra>`,
    });
    const channel = {title: {text: "channel"}, dtick: x.length > 24 ? 4 : 1};
    chart($("channels"), () => ({
      traces: [
        bars(latent.kl_per_channel, "KL", "y", PALETTE[0]),
        bars(latent.std, "of the posterior means over atoms", "y2", PALETTE[1]),
        ...(latent.posterior_std
          ? [bars(latent.posterior_std, "of the posteriors", "y2", NEUTRAL)] : []),
      ].map(trace => ({...trace, showlegend: trace.yaxis === "y2"})),
      layout: {
        barmode: "group", legend: {orientation: "h", x: 0.56, y: 1.02, yanchor: "bottom"},
        xaxis: {...channel, domain: [0, 0.44]},
        yaxis: {title: {text: "KL to the prior, nats per atom"}},
        xaxis2: {...channel, domain: [0.56, 1], anchor: "y2"},
        yaxis2: {title: {text: "standard deviation"}, anchor: "x2"},
      },
    }), 300);
    $("latent-tables").append(el("p", {},
      el("b", {}, `${latent.active_units} of ${x.length}`), " channels are active."));
  } else drop("channels");
  if (symmetry) {
    const show = [["atom displacement", "coords_rmsd", v => number(v, " Å")],
      ["equal atom types", "atom_type_accuracy", percent],
      ["lengths", "lengths_mae", v => number(v, " Å")],
      ["angles", "angles_mae", v => number(v, "°", 3)], ["match rate", "match_rate", percent]];
    $("latent-tables").append(table(
      "Change of the reconstruction when a crystal is described differently",
      ["", ...show.map(([name]) => name)],
      Object.entries(symmetry).map(([transformation, row]) =>
        [transformation, ...show.map(([, key, format]) => format(row[key]))])));
  }
  if (kept) {
    const parts = ["kept", "lost", "gained", "changed"].filter(key => isPresent(kept[key]));
    $("latent-tables").append(table(`Space groups (symprec ${kept.symprec} Å)`,
      ["", ...parts], [["fraction of reconstructions", ...parts.map(key => percent(kept[key]))]]));
  }
  if (!latent && !symmetry && !kept) drop("latent");
}

function showTraining() {
  const curve = (name, color, scale = 1) => training[name] && {
    type: "scatter", mode: training[name][0].length > 1 ? "lines" : "markers", name,
    x: training[name][0], y: training[name][1].map(y => isPresent(y) ? scale * y : null), line: {color},
    marker: {color},
  };
  const losses = [curve("train/loss", NEUTRAL), curve("val/loss", PALETTE[0])].filter(Boolean);
  const rates = [curve("val/match_rate", PALETTE[0], 100)].filter(Boolean);
  const step = {title: {text: "step"}};
  const type = losses.every(trace => trace.y.every(y => y > 0)) ? "log" : "linear";
  if (losses.length) {
    chart($("losses"), () => ({traces: losses, layout: {
      xaxis: step, yaxis: {title: {text: "loss"}, type, dtick: type === "log" ? "D2" : undefined},
    }}));
  } else drop("losses");
  if (rates.length) {
    chart($("rates"), () => ({
      traces: rates, layout: {xaxis: step, yaxis: rateAxis("val/match_rate, %"), showlegend: false},
    }));
  } else drop("rates");
  if (!losses.length && !rates.length) drop("training");
}

showSummary();
showPairs();
showMatch();
showNoise();
showMap();
showLatent();
showTraining();
$("contents").append(...[...document.querySelectorAll("section")].map(section =>
  el("a", {href: `#${section.id}`}, section.querySelector("h2").textContent)));

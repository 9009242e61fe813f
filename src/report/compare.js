"use strict";
// Fills the page that compares evaluations from the JSON in #data.

const {names, rows, differing} = JSON.parse(document.getElementById("data").textContent);

function valueText(row, i) {
  const value = row.values[i], interval = row.intervals[i];
  if (!isPresent(value)) return "–";
  const [factor, unit, digits] = row.is_share ? [100, " %", 2] : [1, "", 4];
  const text = x => row.is_share || !Number.isInteger(x) ? (factor * x).toFixed(digits) : String(x);
  const spread = interval ? ` ± ${(factor * (interval[1] - interval[0]) / 2).toFixed(digits)}` : "";
  return text(value) + spread + unit;
}

function table(head, body) {
  return el("table", {}, el("thead", {}, el("tr", {}, ...head.map(text => el("th", {}, text)))),
    el("tbody", {}, ...body));
}

function figureRow(row) {
  const marked = row.differing.length > 0;
  const name = el("th", {title: marked ? `differs in: ${row.differing.join(", ")}` : ""},
    el("code", {}, row.figure), marked ? el("span", {className: "bad"}, " †") : "");
  return el("tr", {}, name, ...names.map((_, i) =>
    el("td", {}, row.best.includes(i) ? el("b", {}, valueText(row, i)) : valueText(row, i))));
}

const FILTERS = [
  ["all", () => true],
  ["in all evaluations", row => row.values.every(isPresent)],
  ["with a best value", row => row.best.length > 0],
  ["not compared", row => row.differing.length > 0],
];
const filters = FILTERS.map(([name, test]) => [name, rows.filter(test)]);
$("filter").append(...filters.map(([name, found], i) =>
  el("option", {value: i}, `${name} (${found.length})`)));
const apply = () => $("tables").replaceChildren(
  table(["", ...names], filters[$("filter").value][1].map(figureRow)));
$("filter").onchange = apply;
apply();

const settings = Object.entries(differing);
$("none").hidden = settings.length > 0;
if (settings.length) {
  $("settings-table").append(table(["", ...names], settings.map(([name, values]) =>
    el("tr", {}, el("th", {}, el("code", {}, name)), ...values.map(text => el("td", {}, text))))));
}

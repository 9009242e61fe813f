"use strict";
// Fills the page of generated crystals from the JSON in #data.

const {about, samples, elements, counts, known, total} =
  JSON.parse(document.getElementById("data").textContent);

const CARDS_PER_PAGE = 12;
const FILTERS = [
  ["all", () => true],
  ["valid", sample => sample.valid_structure && sample.valid_composition],
  ["not valid", sample => !(sample.valid_structure && sample.valid_composition)],
];
if (known) {
  FILTERS.push(
    ["like a known crystal", sample => isPresent(sample.known?.rms)],
    ["of a known formula, otherwise new", sample => sample.known && !isPresent(sample.known.rms)],
    ["of a new formula", sample => sample.valid_structure && !sample.known],
  );
}

$("source").append(...about.flatMap(([name, value], i) =>
  [`${i ? " · " : ""}${name} `, el("code", {}, value)]));
const share = n => total ? `${(100 * n / total).toFixed(1)} %` : "–";
$("tiles").append(
  tile("Valid structures", share(counts.valid_structure), "no atoms closer than 0.5 Å"),
  tile("Valid compositions", share(counts.valid_composition), "SMACT: charges can balance"),
  tile("Both", share(counts.valid), `of ${total.toLocaleString("en")} crystals`),
);
if (known) {
  const found = samples.filter(sample => isPresent(sample.known?.rms)).length;
  $("tiles").append(
    tile("Like a known crystal", String(found), `of ${samples.length} shown; ${known.settings}`),
    tile("Known crystals", known.count.toLocaleString("en"), known.source),
  );
  $("explanation").textContent = "Beside each is the known crystal of the same formula that it " +
    "matches best or, if it matches none, the one with the closest volume per atom.";
}
if (samples.length < total) {
  $("limit").textContent = `The first ${samples.length.toLocaleString("en")} of ` +
    `${total.toLocaleString("en")} crystals are shown.`;
}

const cards = Array.from({length: Math.min(CARDS_PER_PAGE, samples.length)}, 
  () => new SampleCard(elements, Boolean(known)));
$("grid").append(...cards.map(card => card.node));
const filters = FILTERS.map(([name, test]) => [name, samples.filter(test)]);
$("filter").append(...filters.map(([name, found], i) =>
  el("option", {value: i}, `${name} (${found.length})`)));
const apply = () => {
  const found = filters[$("filter").value][1];
  $("nothing").hidden = found.length > 0;
  paginate(cards, found.length, (card, k) => card.show(found[k]));
};
$("filter").onchange = apply;
apply();

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

/** A generated crystal next to the nearest known one; each rotates on its own. */
class SampleCard {
  constructor() {
    this.title = el("h3");
    this.facts = el("p", {className: "facts"});
    this.legend = el("p", {className: "legend"});
    this.cameras = [new Camera(), new Camera()];
    this.captions = [el("figcaption", {}, "generated"), el("figcaption")];
    const canvases = ["generated", "known"].map(name => el("canvas", {ariaLabel: name}));
    this.none = el("div", {className: "none"});
    this.known = canvases[1];
    const figures = canvases.map((canvas, k) => el("figure", {}, canvas, this.captions[k]));
    figures[1].prepend(this.none);
    if (!known) figures.pop();
    this.node = el("article", {className: "pair"}, this.title,
      el("div", {className: "canvases"}, ...figures), this.legend, this.facts);
    this.views = canvases.map((canvas, k) => new CrystalView(canvas, this.cameras[k], elements));
  }

  show(sample) {
    this.node.dataset.id = sample.id;
    this.title.replaceChildren(...formulaNodes(sample.formula), el("code", {}, sample.id));
    const isValid = sample.valid_structure && sample.valid_composition;
    const verdict = isValid ? "valid" : sample.valid_structure
      ? "not valid: the charges do not balance" : `not valid: ${sample.reason}`;
    this.facts.replaceChildren(
      el("b", {className: isValid ? "good" : "bad"}, verdict),
      ` · ${sample.num_atoms} atoms`,
      sample.space_group ? ` · ${sample.space_group}` : "",
      isPresent(sample.density) ? ` · ${number(sample.density, " g/cm³", 2)}` : "");
    const nearest = sample.known;
    this.none.hidden = Boolean(nearest);
    this.known.hidden = !nearest;
    this.none.textContent = sample.valid_structure
      ? "no known crystal has this formula" : "not compared";
    this.captions[1].textContent = !nearest ? "" : isPresent(nearest.rms)
      ? `${nearest.id}: matches, rms ${number(nearest.rms, "", 3)}`
      : `${nearest.id}: same formula, no match`;
    if (nearest?.space_group) this.captions[1].append(`, ${nearest.space_group}`);
    this.legend.replaceChildren(...legendNodes([sample.crystal, nearest?.crystal], elements));
    this.views[0].show(sample.crystal);
    this.views[1].show(nearest?.crystal ?? null);
    this.cameras.forEach(camera => camera.reset());
  }
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

const cards = Array.from({length: Math.min(CARDS_PER_PAGE, samples.length)}, () => new SampleCard());
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

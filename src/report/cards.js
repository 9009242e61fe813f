"use strict";
// Cards with generated crystals.

/** A generated crystal next to the nearest known one; each rotates on its own. */
class SampleCard {
  /** `elements` has the colors and radii; `isCompared` says whether there are known crystals. */
  constructor(elements, isCompared) {
    this.elements = elements;
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
    if (!isCompared) figures.pop();
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
      isPresent(sample.density) ? ` · ${number(sample.density, " g/cm³", 2)}` : "",
      ...(sample.notes ?? []).map(note => ` · ${note}`));
    const nearest = sample.known;
    this.none.hidden = Boolean(nearest);
    this.known.hidden = !nearest;
    this.none.textContent = sample.valid_structure
      ? "no known crystal has this formula" : "not compared";
    this.captions[1].textContent = !nearest ? "" : isPresent(nearest.rms)
      ? `${nearest.id}: matches, rms ${number(nearest.rms, "", 3)}`
      : nearest.caption ? `${nearest.id}, ${nearest.formula}: ${nearest.caption}`
        : `${nearest.id}: same formula, no match`;
    if (nearest?.space_group) this.captions[1].append(`, ${nearest.space_group}`);
    this.legend.replaceChildren(...legendNodes([sample.crystal, nearest?.crystal], this.elements));
    this.views[0].show(sample.crystal);
    this.views[1].show(nearest?.crystal ?? null);
    this.cameras.forEach(camera => camera.reset());
  }
}

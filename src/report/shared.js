"use strict";
// Small helpers of all pages. Text from the data is only inserted as text nodes.

const $ = id => document.getElementById(id);

function el(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const isPresent = value => value !== null && value !== undefined;
const number = (value, unit = "", digits = 4) =>
  isPresent(value) ? `${value.toFixed(digits)}${unit}` : "–";
const percent = x => isPresent(x) ? `${(100 * x).toFixed(2)} %` : "–";

/** A formula such as Na2O with subscripts. */
function formulaNodes(text) {
  return text.split(/(\d+)/).map(part => /^\d+$/.test(part) ? el("sub", {}, part) : part);
}

const tile = (name, value, note) => el("div", {className: "tile"},
  el("span", {}, name), el("strong", {}, value), el("small", {}, note));

/** The colors of the elements in some crystals, each of which may be null. */
function legendNodes(crystals, elements) {
  const used = new Set(crystals.flatMap(crystal => crystal?.numbers ?? []));
  return [...used].map(n => {
    const chip = el("i");
    chip.style.background = `rgb(${elements[n].color})`;
    return el("span", {}, chip, elements[n].symbol);
  });
}

/** Show `count` items on pages of as many as there are `cards`; returns a function that goes to one.
 * `show(card, k)` fills a card with item k. Needs buttons `previous` and `next`, and a text `page`. */
function paginate(cards, count, show) {
  const numPages = Math.max(1, Math.ceil(count / cards.length));
  let page;
  const goTo = number => {
    page = number;
    cards.forEach((card, i) => {
      const k = page * cards.length + i;
      card.node.hidden = k >= count;
      card.node.classList.remove("chosen");
      if (k < count) show(card, k);
    });
    $("page").textContent = `Page ${page + 1} of ${numPages}`;
    $("previous").disabled = page === 0;
    $("next").disabled = page === numPages - 1;
  };
  $("previous").onclick = () => goTo(page - 1);
  $("next").onclick = () => goTo(page + 1);
  goTo(0);
  return goTo;
}

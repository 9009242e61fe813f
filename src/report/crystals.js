"use strict";
// Crystals on a canvas: shaded spheres and the edges of the cell, drawn from back to front.
// Coordinates are in Å; the screen's are right, up, and towards the viewer.

const AXIS_COLORS = ["rgb(217,51,51)", "rgb(38,153,51)", "rgb(51,89,230)"]; // a, b, c
const EDGE_COLOR = "rgb(140,140,140)";
const EDGE_PIECES = 24; // each of which is in front of an atom or behind it
const TURN_PER_PIXEL = 0.01;
const ZOOM_PER_PIXEL = 0.0015;

/** Turn about the screen's vertical axis by `turn`, then about its horizontal one by `tilt`. */
function rotation(tilt, turn) {
  const [cx, sx, cy, sy] = [Math.cos(tilt), Math.sin(tilt), Math.cos(turn), Math.sin(turn)];
  return [[cy, 0, sy], [sx * sy, cx, -sx * cy], [-cx * sy, sx, cx * cy]];
}

const transform = (matrix, v) => matrix.map(r => r[0] * v[0] + r[1] * v[1] + r[2] * v[2]);
const transpose = matrix => matrix[0].map((_, j) => matrix.map(row => row[j]));
const product = (m, n) => transpose(transpose(n).map(column => transform(m, column)));
const add = (u, v, scale = 1) => u.map((x, i) => x + scale * v[i]);
const length = v => Math.hypot(...v);

const Z_UP = [[1, 0, 0], [0, 0, 1], [0, -1, 0]];
const START = product(rotation(14 * Math.PI / 180, -24 * Math.PI / 180), Z_UP);

/** A sphere lit from the upper left, as a picture that is drawn at any size. */
function spherePicture([r, g, b]) {
  const size = 128;
  const picture = document.createElement("canvas");
  picture.width = picture.height = size;
  const context = picture.getContext("2d");
  const mix = (target, share) =>
    `rgb(${[r, g, b].map(x => Math.round(x + share * (target - x))).join(",")})`;
  const light = context.createRadialGradient(
    0.36 * size, 0.33 * size, 0, 0.45 * size, 0.43 * size, 0.58 * size);
  light.addColorStop(0, mix(255, 0.75));
  light.addColorStop(0.35, mix(255, 0.15));
  light.addColorStop(0.6, mix(0, 0.05));
  light.addColorStop(1, mix(0, 0.5));
  context.fillStyle = light;
  context.beginPath();
  context.arc(size / 2, size / 2, size / 2 - 1.5, 0, 2 * Math.PI);
  context.fill();
  context.lineWidth = 1.5;
  context.strokeStyle = "rgba(0,0,0,0.55)";
  context.stroke();
  return picture;
}

/** What never changes while a crystal is turned; coordinates from the middle of its cell. */
function prepare(crystal, elements) {
  const [a, b, c] = crystal.cell;
  const middle = add(add(a, b), c).map(x => x / 2);
  const atoms = crystal.numbers.map((number, i) => ({
    place: add(crystal.positions[i], middle, -1),
    radius: elements[number].radius,
    picture: elements[number].picture ??= spherePicture(elements[number].color),
  }));
  const pieces = [];
  let radius = 0;
  for (const axis of [0, 1, 2]) {
    const [u, v] = [0, 1, 2].filter(i => i !== axis).map(i => crystal.cell[i]);
    for (const [m, n] of [[0, 0], [1, 0], [0, 1], [1, 1]]) {
      const start = add(add(add([0, 0, 0], u, m), v, n), middle, -1);
      radius = Math.max(radius, length(start), length(add(start, crystal.cell[axis])));
      for (let i = 0; i < EDGE_PIECES; i++) {
        const at = share => add(start, crystal.cell[axis], share / EDGE_PIECES);
        const place = at(i + 0.5);
        if (atoms.every(atom => length(add(place, atom.place, -1)) > atom.radius)) {
          pieces.push({place, ends: [at(i), at(i + 1)], axis: m || n ? null : axis});
        }
      }
    }
  }
  for (const atom of atoms) radius = Math.max(radius, length(atom.place) + atom.radius);
  return {items: [...atoms, ...pieces], radius};
}

/** From where one looks, shared by the views of crystals that are to be compared. */
class Camera {
  constructor() {
    this.views = [];
    this.reset();
  }

  reset() {
    this.rotation = START;
    this.zoom = 1;
    this.draw();
  }

  turn(tilt, turn) {
    this.rotation = product(rotation(tilt, turn), this.rotation);
    this.draw();
  }

  zoomBy(factor) {
    this.zoom = Math.min(20, Math.max(0.2, this.zoom * factor));
    this.draw();
  }

  /** Å from the middle to the border, of the largest crystal. */
  get radius() {
    return Math.max(1, ...this.views.map(view => view.scene?.radius ?? 0)) / this.zoom;
  }

  draw() {
    for (const view of this.views) view.draw();
  }
}

/** A crystal on a canvas that turns by dragging (or arrow keys) and zooms by the wheel. */
class CrystalView {
  constructor(canvas, camera, elements) {
    Object.assign(this, {canvas, camera, elements, scene: null});
    camera.views.push(this);
    canvas.tabIndex = 0;
    canvas.addEventListener("pointerdown", event => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("pointermove", event => {
      if (canvas.hasPointerCapture(event.pointerId)) {
        camera.turn(event.movementY * TURN_PER_PIXEL, event.movementX * TURN_PER_PIXEL);
      }
    });
    canvas.addEventListener("wheel", event => {
      if (document.activeElement !== canvas && !event.ctrlKey) return; // the page scrolls
      event.preventDefault();
      camera.zoomBy(Math.exp(-event.deltaY * ZOOM_PER_PIXEL));
    }, {passive: false});
    canvas.addEventListener("dblclick", () => camera.reset());
    canvas.addEventListener("keydown", event => {
      const turns = {
        ArrowLeft: [0, -0.1], ArrowRight: [0, 0.1], ArrowUp: [-0.1, 0], ArrowDown: [0.1, 0],
      };
      if (!turns[event.key]) return;
      event.preventDefault();
      camera.turn(...turns[event.key]);
    });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  /** Show a crystal, or say that there is none; its camera then draws. */
  show(crystal) {
    this.scene = crystal && prepare(crystal, this.elements);
  }

  draw() {
    const {canvas, camera} = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    const context = canvas.getContext("2d");
    canvas.width = width * devicePixelRatio;
    canvas.height = height * devicePixelRatio;
    context.scale(devicePixelRatio, devicePixelRatio);
    if (!this.scene) {
      context.fillStyle = getComputedStyle(canvas).color;
      context.textAlign = "center";
      context.font = "13px system-ui, sans-serif";
      context.fillText("no crystal", width / 2, height / 2);
      return;
    }
    const scale = Math.min(width, height) / 2 / camera.radius;
    const items = this.scene.items.map(item => ({
      ...item, screen: transform(camera.rotation, item.place),
    }));
    items.sort((one, other) => one.screen[2] - other.screen[2]);
    context.translate(width / 2, height / 2);
    context.lineCap = "round";
    for (const item of items) {
      if (item.picture) {
        const radius = item.radius * scale;
        const [x, y] = [item.screen[0] * scale, -item.screen[1] * scale];
        context.drawImage(item.picture, x - radius, y - radius, 2 * radius, 2 * radius);
      } else {
        const [start, end] = item.ends.map(point => transform(camera.rotation, point));
        context.strokeStyle = item.axis === null ? EDGE_COLOR : AXIS_COLORS[item.axis];
        context.lineWidth = item.axis === null ? 1 : 1.6;
        context.beginPath();
        context.moveTo(start[0] * scale, -start[1] * scale);
        context.lineTo(end[0] * scale, -end[1] * scale);
        context.stroke();
      }
    }
  }
}

"use strict";
// Draws crystals on a canvas: shaded spheres and the edges of the cell, from back to front.
// Coordinates are in Å; screen coordinates are right, up, and toward the viewer.

const AXIS_COLORS = ["rgb(217,51,51)", "rgb(38,153,51)", "rgb(51,89,230)"]; // a, b, c
const EDGE_COLOR = "rgb(140,140,140)";
const EDGE_PIECES = 24; // pieces of an edge, each sorted by depth
const TURN_PER_PIXEL = 0.01;
const ZOOM_PER_PIXEL = 0.0015;

/** Rotation by `turn` about the screen's vertical axis, then by `tilt` about the horizontal one. */
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

/** Picture of a sphere lit from the upper left, to be drawn at any size. */
function spherePicture([r, g, b]) {
  const size = 128;
  const picture = document.createElement("canvas");
  picture.width = picture.height = size;
  const context = picture.getContext("2d");
  const mix = (target, amount) =>
    `rgb(${[r, g, b].map(x => Math.round(x + amount * (target - x))).join(",")})`;
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

/** Precompute what does not change with the view; coordinates relative to the cell center. */
function prepare(crystal, elements) {
  const [a, b, c] = crystal.cell;
  const center = add(add(a, b), c).map(x => x / 2);
  const atoms = crystal.numbers.map((number, i) => ({
    position: add(crystal.positions[i], center, -1),
    radius: elements[number].radius,
    picture: elements[number].picture ??= spherePicture(elements[number].color),
  }));
  const pieces = [];
  let radius = 0;
  for (const axis of [0, 1, 2]) {
    const [u, v] = [0, 1, 2].filter(i => i !== axis).map(i => crystal.cell[i]);
    for (const [m, n] of [[0, 0], [1, 0], [0, 1], [1, 1]]) {
      const start = add(add(add([0, 0, 0], u, m), v, n), center, -1);
      radius = Math.max(radius, length(start), length(add(start, crystal.cell[axis])));
      for (let i = 0; i < EDGE_PIECES; i++) {
        const at = k => add(start, crystal.cell[axis], k / EDGE_PIECES);
        const position = at(i + 0.5);
        if (atoms.every(atom => length(add(position, atom.position, -1)) > atom.radius)) {
          pieces.push({position, ends: [at(i), at(i + 1)], axis: m || n ? null : axis});
        }
      }
    }
  }
  for (const atom of atoms) radius = Math.max(radius, length(atom.position) + atom.radius);
  return {items: [...atoms, ...pieces], radius};
}

/** Orientation and zoom, shared by the views of crystals that are compared. */
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

  /** Distance in Å from the center to the border, so that the largest crystal fits. */
  get radius() {
    return Math.max(1, ...this.views.map(view => view.scene?.radius ?? 0)) / this.zoom;
  }

  draw() {
    for (const view of this.views) view.draw();
  }
}

/** A crystal on a canvas; dragging or arrow keys rotate it, the mouse wheel zooms. */
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

  /** Set the crystal (null if there is none); the camera draws it with the next update. */
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
      context.fillText("invalid structure", width / 2, height / 2);
      return;
    }
    const scale = Math.min(width, height) / 2 / camera.radius;
    const items = this.scene.items.map(item => ({
      ...item, screen: transform(camera.rotation, item.position),
    }));
    items.sort((a, b) => a.screen[2] - b.screen[2]);
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

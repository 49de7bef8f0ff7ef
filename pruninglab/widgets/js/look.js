// Shared by all modules of the browser: colours that hold in light and dark, elements, a canvas that fits its place.
const COLOURS = ["#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161"];

function make(kind, parent, options = {}) {
  const element = Object.assign(document.createElement(kind), options);
  parent?.append(element);
  return element;
}

function begin(el) {
  el.classList.add("pl");
  // JupyterLab leaves arrows and letters to an element that says so itself: it asks the target before any of its parents.
  el.addEventListener("focusin", ({ target }) => { target.dataset.lmSuppressShortcuts = "true"; });
}

function ink(element) {
  return getComputedStyle(element).color;
}

// A canvas as sharp as the screen. `draw(context, width, height)` runs once in the next frame, however often it is asked.
function board(parent, height, draw) {
  const canvas = make("canvas", parent);
  canvas.style.height = `${height}px`;
  let asked = 0;
  const paint = () => {
    asked = 0;
    const [width, scale] = [canvas.clientWidth, devicePixelRatio || 1];
    if (!width) return;
    canvas.width = width * scale;
    canvas.height = height * scale;
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    draw(context, width, height);
  };
  const redraw = () => { asked ||= requestAnimationFrame(paint); };
  const watcher = new ResizeObserver(redraw);
  watcher.observe(canvas);
  return { canvas, redraw, close: () => { watcher.disconnect(); cancelAnimationFrame(asked); } };
}

const percent = (share, digits = 2) => `${(100 * share).toFixed(digits)}%`;
const short = (layer) => layer.replace(/\.weight$/, "");

// From light blue over white to red, as in the figures; what is exactly 0 is grey.
function shade(value) {  // value from -1 to 1
  const [strong, pale] = [Math.min(Math.abs(value), 1), 0.15];
  const by = pale + (1 - pale) * Math.sqrt(strong);
  const end = value < 0 ? [33, 102, 172] : [178, 24, 43];
  return end.map((colour) => Math.round(247 + (colour - 247) * by));
}
const GREY = [205, 205, 205];

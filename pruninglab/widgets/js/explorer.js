// One layer on two sides, as matrices: zoom with the wheel, move by dragging, and point at a weight to read it. Both
// sides show the same part of the layer.
function matrix(model, side) {
  const [about, view] = [model.get("sides")[side], model.get(`content${side}`)];
  if (!about || !view?.byteLength) return { ...about };
  const copy = view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
  const cells = copy.byteLength / 8;
  return { ...about, values: new Float32Array(copy, 0, cells), ranks: new Int32Array(copy, 4 * cells, cells) };
}

export default {
  render({ model, el }) {
    begin(el);
    const columns = make("div", el, { className: "pl-columns" });
    let view = { x: 0, y: 0, zoom: 1 };  // the part that is seen, in shares of the layer
    let point = null;
    const sides = [0, 1].map((side) => {
      const place = make("div", columns);
      const title = make("b", place);
      const row = make("div", place, { className: "pl-row" });
      const label = make("label", row, { textContent: "density" });
      const slider = make("input", row, { type: "range", min: 0, step: 1, max: model.get("densities").length - 1 });
      slider.id = label.htmlFor = `pl-${Math.random().toString(36).slice(2)}`;
      const exact = make("output", row);
      const words = make("div", place);
      const one = { place, title, row, slider, exact, words, image: null };
      one.board = board(place, 280, (context, width, height) => paint(one, context, width, height));
      one.board.canvas.classList.add("pl-map");
      one.board.canvas.role = "img";
      one.board.canvas.tabIndex = 0;
      let since = 0;
      slider.addEventListener("input", () => {
        since = performance.now();
        one.at = Number(slider.value);
        tint(one);
        requestAnimationFrame(() => { el.dataset.redraws = `${el.dataset.redraws || ""} ${(performance.now() - since).toFixed(1)}`; });
      });
      slider.addEventListener("change", () => model.send({ do: "density", side, at: one.at }));
      watch(one);
      return one;
    });
    const told = make("div", el, { className: "pl-hint" });
    told.ariaLive = "polite";
    const path = board(el, 130, draw_path);
    path.canvas.role = "img";

    const keeps = (one) => one.data.keep ?? one.data.keeps[one.at];
    function tint(one) {  // the picture of the whole layer; zooming only draws another part of it
      const { rows, cols, values, ranks, top } = one.data;
      if (!values) { one.image = null; one.board.redraw(); return; }
      const canvas = new OffscreenCanvas(cols, rows);
      const image = new ImageData(cols, rows);
      const keep = keeps(one);
      for (let i = 0; i < values.length; i++) {
        const [red, green, blue] = ranks[i] < keep ? TINTS[Math.round(128 + 127 * values[i] / top)] : GREY;
        image.data.set([red, green, blue, 255], 4 * i);
      }
      canvas.getContext("2d").putImageData(image, 0, 0);
      one.image = canvas;
      const { total, density, layer, kept_here, left, words } = one.data;
      const here = kept_here[one.data.keep === null ? one.at : 0];
      one.exact.textContent = one.data.keep === null ? percent(model.get("densities")[one.at]) : "";
      one.words.textContent = words || `${here.toLocaleString("en")} of ${left.toLocaleString("en")} weights of this layer, ${percent(one.data.keep === null ? keep / total : density)} of all`;
      one.board.canvas.ariaLabel = `${short(layer)}: ${one.words.textContent}`;
      one.board.redraw();
    }
    function paint(one, context, width, height) {
      if (!one.image) return;
      context.imageSmoothingEnabled = false;
      const { rows, cols, shape, watched } = one.data;
      context.drawImage(one.image, view.x * cols, view.y * rows, cols / view.zoom, rows / view.zoom, 0, 0, width, height);
      context.lineWidth = 2;
      const place = (row, col) => [
        ((col + 0.5) / shape[1] - view.x) * view.zoom * width, ((row + 0.5) / shape[0] - view.y) * view.zoom * height,
      ];
      context.strokeStyle = "#000";
      watched.forEach(({ row, col }) => { context.beginPath(); context.arc(...place(row, col), 5, 0, 7); context.stroke(); });
      if (!point) return;
      const [x, y] = place(...point);
      const [w, h] = [Math.max(view.zoom * width / cols, 6), Math.max(view.zoom * height / rows, 6)];
      context.strokeStyle = "#de8f05";
      context.strokeRect(x - w / 2, y - h / 2, w, h);
    }
    function watch(one) {
      const canvas = one.board.canvas;
      let held = null;
      const at = (event) => [event.offsetX / canvas.clientWidth, event.offsetY / canvas.clientHeight];
      const look = (next) => {
        const zoom = Math.min(Math.max(next.zoom, 1), 200);
        const inside = (start) => Math.min(Math.max(start, 0), 1 - 1 / zoom);
        view = { zoom, x: inside(next.x), y: inside(next.y) };
        sides.forEach((side) => side.board.redraw());
      };
      const zoom = (factor, x, y) => {
        const to = Math.min(Math.max(view.zoom * factor, 1), 200);
        look({ zoom: to, x: view.x + x / view.zoom - x / to, y: view.y + y / view.zoom - y / to });
      };
      canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoom(event.deltaY < 0 ? 1.25 : 0.8, ...at(event)); }, { passive: false });
      canvas.addEventListener("pointerdown", (event) => { held = [at(event), view]; canvas.setPointerCapture(event.pointerId); });
      canvas.addEventListener("pointerup", () => { held = null; });
      canvas.addEventListener("dblclick", () => look({ zoom: 1, x: 0, y: 0 }));
      canvas.addEventListener("pointermove", (event) => {
        const [x, y] = at(event);
        if (held) look({ ...view, x: held[1].x - (x - held[0][0]) / view.zoom, y: held[1].y - (y - held[0][1]) / view.zoom });
        else if (one.data.values) {
          const { rows, cols, stride } = one.data;
          point = [Math.floor((view.y + y / view.zoom) * rows) * stride[0], Math.floor((view.x + x / view.zoom) * cols) * stride[1]];
          tell();
        }
      });
      canvas.addEventListener("keydown", (event) => {
        if (!"+-ArrowLeftArrowRightArrowUpArrowDown".includes(event.key)) return;
        event.preventDefault();
        if (event.key === "+" || event.key === "-") return zoom(event.key === "+" ? 1.5 : 1 / 1.5, 0.5, 0.5);
        const [dy, dx] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
        const { shape, stride } = one.data;
        const step = (start, by, size, stride) => Math.min(Math.max(start + by * stride, 0), size - 1);
        point = point ? [step(point[0], dy, shape[0], stride[0]), step(point[1], dx, shape[1], stride[1])] : [0, 0];
        tell();
      });
    }
    function tell() {
      const said = sides.filter((one) => one.data.values).map((one) => {
        const { rows, cols, stride, values, ranks, name } = one.data;
        const i = Math.min(Math.floor(point[0] / stride[0]), rows - 1) * cols + Math.min(Math.floor(point[1] / stride[1]), cols - 1);
        return `${name}: ${values[i].toPrecision(3)}, ${ranks[i] < keeps(one) ? "kept" : "pruned"}`;
      });
      told.textContent = `${short(sides[0].data.layer)}, output ${point[0]}, input ${point[1]} — ${said.join("; ")}`;
      sides.forEach((one) => one.board.redraw());
      path.redraw();
    }
    function followed() {
      const all = sides.flatMap((one) => one.data.watched || []);
      if (!point || !all.length) return null;
      const { shape } = sides[0].data;
      const far = ({ row, col }) => Math.hypot((row - point[0]) / shape[0], (col - point[1]) / shape[1]);
      return all.reduce((best, one) => (far(one) < far(best) ? one : best));
    }
    function draw_path(context, width, height) {
      const one = followed();
      path.canvas.hidden = !sides.some((side) => side.data?.watched?.length);
      context.fillStyle = context.strokeStyle = ink(el);
      context.font = "12px " + getComputedStyle(el).fontFamily;
      if (!one) return context.fillText("Point at the layer to see the path of a followed weight (○).", 4, 20);
      const [x, y, wide, tall] = [44, 24, width - 60, height - 46];
      const top = Math.max(...one.magnitude, ...one.threshold.filter(Number.isFinite)) || 1;
      const curve = (values, colour, dash) => {
        context.strokeStyle = colour;
        context.setLineDash(dash);
        context.lineWidth = 2;
        context.beginPath();
        values.forEach((value, i) => {
          if (Number.isFinite(value)) context.lineTo(x + (i / Math.max(values.length - 1, 1)) * wide, y + tall * (1 - value / top));
        });
        context.stroke();
        context.setLineDash([]);
      };
      curve(one.magnitude, COLOURS[0], []);
      curve(one.momentum, COLOURS[1], []);
      curve(one.threshold, COLOURS[4], [5, 4]);
      const fate = one.kept ? "kept" : "pruned";
      let at = 4;
      [[`output ${one.row}, input ${one.col}, ${fate}:`, context.fillStyle], ["|w|", COLOURS[0]], ["momentum of |w|", COLOURS[1]], ["threshold", COLOURS[4]]].forEach(([text, colour]) => {
        context.fillStyle = colour;
        context.fillText(text, at, 14);
        at += context.measureText(text).width + 14;
      });
      context.fillStyle = ink(el);
      context.fillText(top.toPrecision(2), 4, y + 10);
      context.fillText("0", 30, y + tall);
      context.fillText("epoch 1", x, y + tall + 16);
      context.textAlign = "right";
      context.fillText(`epoch ${one.magnitude.length}`, x + wide, y + tall + 16);
      path.canvas.ariaLabel = `Path of weight ${one.row}, ${one.col}, which is ${fate}.`;
    }
    const show = (side) => {
      const one = sides[side];
      one.data = matrix(model, side);
      one.at = one.data.at;
      one.slider.value = one.at;
      one.row.style.visibility = one.data.keep === null ? "visible" : "hidden";
      one.title.textContent = one.data.name;
      one.words.textContent = one.data.words;
      if (point && (point[0] >= one.data.shape[0] || point[1] >= one.data.shape[1])) point = null;
      tint(one);
      path.redraw();
    };
    const both = () => { show(0); show(1); };
    model.on("change:sides", both);
    both();
    return () => {
      model.off("change:sides", both);
      sides.forEach((one) => one.board.close());
      path.close();
    };
  },
};

const TINTS = Array.from({ length: 256 }, (_, i) => shade((i - 128) / 127));

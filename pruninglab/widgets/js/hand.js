// Prune by hand. The ranks of the weights are here, so a drag is drawn without asking; the kernel measures, one question
// at a time, and what is moved while it measures goes into the next question.
const talks = new WeakMap();  // of each panel: moves that wait, and the turn that has not been answered yet

function talk(model) {
  if (!talks.has(model)) talks.set(model, { turn: model.get("shown").turn, asked: 0, moves: [] });
  return talks.get(model);
}

function ask(model) {
  const own = talk(model);
  if (own.asked || !own.moves.length) return;
  own.asked = own.turn;
  model.send({ do: "move", turn: own.turn, moves: own.moves });
  own.moves = [];
}

function paint(canvas, layer, kept) {
  const { rows, cols, ranks, shades } = layer;
  canvas.width = cols;
  canvas.height = rows;
  const image = new ImageData(cols, rows);
  const pixels = image.data;
  for (let i = 0; i < ranks.length; i++) {
    const [red, green, blue] = ranks[i] < kept ? PALETTE[shades[i]] : GREY;
    const at = 4 * i;
    pixels[at] = red; pixels[at + 1] = green; pixels[at + 2] = blue; pixels[at + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

const PALETTE = Array.from({ length: 256 }, (_, i) => shade((i - 128) / 127));

function read(model) {
  const buffer = (name) => { const view = model.get(name); return view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength); };
  const [ranks, shades] = [new Uint32Array(buffer("ranks")), new Uint8Array(buffer("shades"))];
  let from = 0;
  return model.get("layers").map((layer) => {
    const to = from + layer.rows * layer.cols;
    const own = { ...layer, ranks: ranks.subarray(from, to), shades: shades.subarray(from, to) };
    from = to;
    return own;
  });
}

export default {
  render({ model, el }) {
    begin(el);
    const [layers, shares, together] = [read(model), model.get("shares"), model.get("together")];
    const [last, lowest] = [shares.length - 1, Math.log10(shares[0])];
    const all = layers.reduce((sum, layer) => sum + layer.total, 0);
    let { kept, at } = structuredClone(model.get("shown"));
    let drawn = [];

    const top = make("div", el, { className: "pl-columns" });
    const left = make("div", top);
    const right = make("div", top);
    const title = make("b", right);
    const table = make("table", right);
    const buttons = make("div", right);
    const [next, take] = ["Which layer next?", "Take it"].map((textContent) => make("button", buttons, { textContent }));
    const hint = make("div", right, { className: "pl-hint" });
    hint.ariaLive = "polite";
    const strip = make("div", el, { className: "pl-strip" });
    const rows = [{ name: "all layers" }, ...layers].map((layer, i) => {
      const row = make("div", left, { className: "pl-row" });
      const label = make("label", row, { textContent: short(layer.name), title: layer.name });
      const slider = make("input", row, { type: "range", min: 0, max: last, step: 1 });
      slider.id = label.htmlFor = `pl-${Math.random().toString(36).slice(2)}`;
      const share = make("output", row);
      slider.addEventListener("input", () => moved(i, Number(slider.value)));
      return { slider, share };
    });
    const canvases = layers.map((layer) => {
      const one = make("div", strip);
      make("div", one, { className: "pl-name", textContent: short(layer.name), title: layer.name });
      const canvas = make("canvas", one);
      canvas.role = "img";
      return canvas;
    });

    const nearest = (share) => last + Math.round((Math.log10(Math.max(share, shares[0])) / -lowest) * last);
    let [frame, since] = [0, 0];
    const redraw = () => { frame ||= requestAnimationFrame(draw); };
    function draw() {
      frame = 0;
      const sum = kept.reduce((a, b) => a + b, 0);
      const exact = [sum / all, ...kept.map((count, i) => count / layers[i].total)];
      rows.forEach(({ slider, share }, i) => {
        if (Number(slider.value) !== at[i]) slider.value = at[i];
        share.textContent = percent(exact[i]);
      });
      kept.forEach((count, i) => {
        if (drawn[i] === count) return;
        paint(canvases[i], layers[i], count);
        canvases[i].ariaLabel = `${layers[i].name}: ${count} of ${layers[i].total} weights left`;
      });
      drawn = [...kept];
      const own = talk(model);
      const shown = model.get("shown");
      const waits = own.asked || own.moves.length;
      title.textContent = waits ? `measuring on ${shown.images} validation images…` : shown.title;
      table.replaceChildren();
      const left = ["weights left", `${sum.toLocaleString("en")} of ${all.toLocaleString("en")} (${percent(sum / all)})`];
      [left, ...shown.rows].forEach(([name, value], i) => {
        const row = make("tr", table, { className: i && waits && !name.includes("all weights") ? "pl-waits" : "" });
        make("td", row, { textContent: name });
        make("td", row, { textContent: value, className: "pl-number" });
      });
      hint.textContent = waits ? "" : shown.hint;
      take.disabled = !shown.can_take || Boolean(waits);
      if (since) el.dataset.redraws = `${el.dataset.redraws || ""} ${(performance.now() - since).toFixed(1)}`;
      since = 0;
    }
    function moved(i, position) {
      since ||= performance.now();
      const own = talk(model);
      if (i) kept[i - 1] = layers[i - 1].counts[position];
      else kept = [...together[position]];
      at = [kept.reduce((a, b) => a + b, 0) / all, ...kept.map((count, j) => count / layers[j].total)].map(nearest);
      at[i] = position;
      own.turn += 1;
      own.moves = i ? [...own.moves.filter(([which]) => which !== i), [i, position]] : [[0, position]];
      redraw();
      ask(model);
    }
    const answered = () => {
      const [own, shown] = [talk(model), model.get("shown")];
      if (own.asked && shown.turn >= own.asked) own.asked = 0;
      if (own.moves.length) ask(model);
      else if (!own.asked) ({ kept, at } = structuredClone(shown));
      redraw();
    };
    next.addEventListener("click", () => { hint.textContent = "trying each layer…"; model.send({ do: "ask" }); });
    take.addEventListener("click", () => model.send({ do: "take" }));
    model.on("change:shown", answered);
    redraw();
    return () => { model.off("change:shown", answered); cancelAnimationFrame(frame); };
  },
};

// A training as it goes: points are appended, and nothing that was drawn is sent again.
function lines(context, box, series, span, name, last) {
  const { x, y, width, height } = box;
  const values = series.flatMap((one) => one.points.map((point) => point[1])).filter(Number.isFinite);
  let [low, high] = span || [Math.min(...values), Math.max(...values)];
  if (!values.length) [low, high] = span || [0, 1];
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const at = (value) => x + (value / last) * width;
  const up = (value) => y + height - ((value - low) / (high - low)) * height;
  const write = (value) => (span ? percent(value, 0) : value.toPrecision(2));
  context.globalAlpha = 0.25;
  context.strokeRect(x + 0.5, y + 0.5, width, height);
  context.globalAlpha = 1;
  context.textAlign = "left";
  context.fillText(name, x, y - 8);
  context.textAlign = "right";
  context.fillText(write(high), x - 5, y + 9);
  context.fillText(write(low), x - 5, y + height);
  context.fillText(`epoch ${last}`, x + width, y + height + 15);
  context.textAlign = "left";
  context.fillText("0", x, y + height + 15);
  series.forEach(({ points, colour, thin }) => {
    context.strokeStyle = context.fillStyle = colour;
    context.globalAlpha = thin ? 0.45 : 1;
    context.lineWidth = thin ? 1 : 2;
    context.beginPath();
    points.filter((point) => Number.isFinite(point[1])).forEach((point) => context.lineTo(at(point[0]), up(point[1])));
    context.stroke();
    if (!thin && points.length < 40) {
      points.forEach((point) => context.fillRect(at(point[0]) - 2, up(point[1]) - 2, 4, 4));
    }
  });
  context.globalAlpha = context.lineWidth = 1;
}

function bars(context, box, kept, names) {
  const { x, y, width, height } = box;
  context.fillText("weights left by layer", x, y - 8);
  const each = Math.min(height / Math.max(names.length, 1), 24);
  const space = Math.min(90, width / 3);
  names.forEach((name, i) => {
    const [top, thick] = [y + i * each, Math.max(Math.min(each - 3, 14), 1)];
    if (each >= 11) {
      context.textAlign = "right";
      context.fillText(short(name).slice(-14), x + space - 6, top + thick / 2 + 4);
    }
    context.globalAlpha = 0.2;
    context.fillRect(x + space, top, width - space - 44, thick);
    context.globalAlpha = 1;
    const colour = context.fillStyle;
    context.fillStyle = COLOURS[0];
    context.fillRect(x + space, top, (width - space - 44) * kept[i], thick);
    context.fillStyle = colour;
    context.textAlign = "left";
    if (each >= 11) context.fillText(percent(kept[i], kept[i] < 0.1 ? 2 : 0), x + width - 40, top + thick / 2 + 4);
  });
}

export default {
  render({ model, el }) {
    begin(el);
    let [rows, names, epochs] = [[], [], 1];
    const pick = (key) => rows.filter((row) => key in row).map((row) => [row.at, row[key]]);
    const place = make("div", el);
    const chart = board(place, 230, (context, width, height) => {
      const colour = ink(el);
      const panels = [
        ["loss", [{ points: pick("batch"), colour: COLOURS[0], thin: true }, { points: pick("loss"), colour: COLOURS[0] }], null],
        ["validation accuracy", [{ points: pick("accuracy"), colour: COLOURS[2] }], [0, 1]],
        ["sparsity", [{ points: pick("sparsity"), colour: COLOURS[1] }], [0, 1]],
      ];
      const columns = width < 620 ? 2 : 4;
      const [wide, tall] = [width / columns, columns === 4 ? height : height / 2];
      context.font = "11px " + getComputedStyle(el).fontFamily;
      [...panels, null].forEach((panel, i) => {
        const [column, line] = [i % columns, Math.floor(i / columns)];
        const box = { x: column * wide + 42, y: line * tall + 24, width: wide - 58, height: tall - 48 };
        context.fillStyle = context.strokeStyle = colour;
        context.textAlign = "left";
        if (panel) return lines(context, box, panel[1], panel[2], panel[0], epochs);
        const kept = rows.findLast((row) => "kept" in row)?.kept;
        if (kept) bars(context, { ...box, x: box.x - 30, width: box.width + 40 }, kept, names);
      });
      chart.canvas.dataset.points = rows.length;
      const end = rows.findLast((row) => "accuracy" in row);
      chart.canvas.ariaLabel = end
        ? `Training: epoch ${end.at} of ${epochs}, loss ${end.loss}, validation accuracy ${percent(end.accuracy)}, sparsity ${percent(end.sparsity)}.`
        : "Training: no epoch is over yet.";
    });
    chart.canvas.role = "img";
    const show = () => { place.hidden = !rows.length; chart.redraw(); };
    const heard = (message) => {
      if (message.begin) [rows, names, epochs] = [[], message.begin.layers, message.begin.epochs];
      if (message.all) rows = message.all;
      if (message.add) rows.push(...message.add);
      show();
    };
    model.on("msg:custom", heard);
    model.send({ do: "all" });  // a page that was opened again has seen no point
    show();
    return () => { model.off("msg:custom", heard); chart.close(); };
  },
};

// The runs of a session and of a folder. The kernel fills the rows; the browser sorts them and tells which are picked.
export default {
  render({ model, el }) {
    begin(el);
    const place = make("div", el, { className: "pl-scroll" });
    const table = make("table", place);
    const head = make("tr", make("thead", table));
    const body = make("tbody", table);
    let [order, falling] = [-1, false];
    let own = { turn: model.get("picked").turn, ids: [...model.get("picked").ids] };
    const headings = model.get("head").map((name, i) => {
      const cell = make("th", head);
      cell.scope = "col";
      make("button", cell, { textContent: name, title: `sort by ${name}` }).addEventListener("click", () => {
        [order, falling] = [i, order === i && !falling];
        show();
      });
      return cell;
    });
    make("th", head);
    const value = (text) => { const number = parseFloat(text.replace(/,/g, "")); return Number.isNaN(number) ? text : number; };
    function sorted(rows) {
      if (order < 0) return rows;
      const compared = (a, b) => {
        const [x, y] = [value(a.cells[order]), value(b.cells[order])];
        return typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === "number" ? -1 : 1;
      };
      return [...rows].sort((a, b) => (falling ? compared(b, a) : compared(a, b)));
    }
    const lines = new Map();  // of each row, what is in the page: a box keeps its focus while its row changes
    function line(row) {
      if (!lines.has(row.id)) {
        const element = make("tr", null);
        const first = make("td", element);
        const label = make("label", first);
        const box = make("input", label, { type: "checkbox" });
        const name = make("span", label);
        box.addEventListener("change", () => {
          own = { turn: own.turn + 1, ids: box.checked ? [...own.ids, row.id] : own.ids.filter((id) => id !== row.id) };
          model.send({ do: "pick", ...own });
        });
        const cells = row.cells.slice(1).map(() => make("td", element));
        const end = make("td", element);
        const bar = make("progress", end, { max: 1 });
        const stop = make("button", end, { textContent: "Cancel" });
        stop.addEventListener("click", () => model.send({ do: "cancel", id: row.id }));
        lines.set(row.id, { element, box, name, cells, bar, stop });
      }
      const { element, box, name, cells, bar, stop } = lines.get(row.id);
      name.textContent = ` ${row.cells[0]}`;
      box.ariaLabel = `pick run ${row.cells.slice(0, 2).join(" ")}`;
      box.checked = own.ids.includes(row.id);
      box.disabled = !row.over;
      cells.forEach((cell, i) => { if (cell.textContent !== row.cells[i + 1]) cell.textContent = row.cells[i + 1]; });
      bar.hidden = row.over || row.waits;
      bar.value = row.share;
      bar.ariaLabel = "progress";
      stop.hidden = row.over;
      element.title = row.words;
      return element;
    }
    function show() {
      const rows = sorted([...model.get("rows"), ...model.get("past")]);
      const elements = rows.map(line);
      if (elements.some((element, i) => body.children[i] !== element) || body.children.length !== elements.length) {
        body.replaceChildren(...elements);
      }
      headings.forEach((cell, i) => { cell.ariaSort = i === order ? (falling ? "descending" : "ascending") : "none"; });
      place.hidden = !rows.length;
    }
    const picked = () => {
      const told = model.get("picked");
      if (told.turn >= own.turn) own = { turn: told.turn, ids: [...told.ids] };
      show();
    };
    model.on("change:rows change:past", show);
    model.on("change:picked", picked);
    show();
    return () => { model.off("change:rows change:past", show); model.off("change:picked", picked); };
  },
};

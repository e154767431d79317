// The table of docs/models.md: filter and sort models.json.
(async () => {
  const byId = (id) => document.getElementById(`models-${id}`);
  const body = byId("table").tBodies[0], head = byId("table").tHead;
  let data;
  try {
    data = await (await fetch("../models.json")).json();
  } catch (error) {
    byId("count").textContent = "models.json could not be read; pages opened from disk may not read files.";
    return;
  }
  const frozenOf = (row) => {
    const pairs = [];
    for (let k = 0; k < row[4].length; k += 2) pairs.push([data.reasons[row[4][k]], row[4][k + 1]]);
    return pairs;
  };
  const sum = (row) => frozenOf(row).reduce((total, [, count]) => total + count, 0);
  const number = (value, digits) =>
    value === null ? "" : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  // Counted later than the rest: not every row has it.
  const blocks = (row) => row[data.columns.indexOf("blocks")] ?? null;
  const columns = [
    ["model", (row) => row[0], (row) => row[0]],
    ["family", (row) => row[1], (row) => row[1]],
    ["groups", (row) => row[2], (row) => number(row[2], 0)],
    ["channels", (row) => row[3], (row) => number(row[3], 0)],
    ["frozen", sum, (row) => number(sum(row), 0)],
    ["MFLOPs", (row) => row[5], (row) => number(row[5], 1)],
    ["left", (row) => row[6], (row) => number(row[6], 4)],
    ["s", (row) => row[7], (row) => number(row[7], 2)],
    ["error", (row) => row[8], (row) => (row[8] === null ? "" : row[8].toExponential(1))],
    ...(data.rows.some((row) => blocks(row) !== null) ? [["blocks", blocks, (row) => number(blocks(row), 0)]] : []),
    ["frozen why", (row) => row[4].length, (row) => frozenOf(row).map(([why, count]) => `${why} ${number(count, 0)}`).join("; ")],
  ];
  const text = new Set(["model", "family", "frozen why"]);
  let order = null, down = false;

  const fill = (select, values) => {
    for (const value of values) select.add(new Option(value, value));
  };
  fill(byId("family"), [...new Set(data.rows.map((row) => row[1]))].sort());
  fill(byId("reason"), [...data.reasons].sort());

  const shown = () => {
    const name = byId("name").value.trim().toLowerCase();
    const family = byId("family").value, outcome = byId("outcome").value;
    const reason = data.reasons.indexOf(byId("reason").value);
    const rows = data.rows.filter((row) =>
      row[0].toLowerCase().includes(name) &&
      (!family || row[1] === family) &&
      (reason < 0 || row[4].some((value, k) => k % 2 === 0 && value === reason)) &&
      (!outcome || (outcome === "weights" ? row[8] !== null : (row[9] !== "") === (outcome === "failed"))));
    if (order !== null) {
      const key = columns[order][1];
      rows.sort((a, b) => {
        const x = key(a), y = key(b);
        if (x === null || y === null) return (x === null) - (y === null);
        return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
      });
    }
    return rows;
  };

  const draw = () => {
    const rows = shown();
    byId("count").textContent = `${rows.length.toLocaleString("en")} of ${data.rows.length.toLocaleString("en")} models`;
    body.replaceChildren(...rows.map((row) => {
      const line = document.createElement("tr");
      if (row[9]) line.className = "failed";
      for (const [title, , cell] of columns) {
        const place = line.insertCell();
        place.textContent = cell(row);
        if (!text.has(title)) place.className = "number";
        if (title === "model" && row[9]) {
          const why = document.createElement("small");
          why.textContent = row[9];
          place.append(document.createElement("br"), why);
        }
      }
      return line;
    }));
  };

  const titles = head.insertRow();
  columns.forEach(([title], k) => {
    const place = document.createElement("th"), button = document.createElement("button");
    button.type = "button";
    button.textContent = title;
    button.addEventListener("click", () => {
      down = order === k ? !down : false;
      order = k;
      [...titles.cells].forEach((cell, n) => {
        if (n === k) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
        else cell.removeAttribute("aria-sort");
      });
      draw();
    });
    place.append(button);
    titles.append(place);
  });
  for (const id of ["name", "family", "reason", "outcome"]) byId(id).addEventListener("input", draw);
  draw();
})();

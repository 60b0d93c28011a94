"use strict";
(() => {
  // Every name comes from a disk image, so from a stranger: it reaches the page as text, never as markup.
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const count = (value) => value.toLocaleString("en");
  const plural = (value, word) => `${count(value)} ${word}${value === 1 ? "" : "s"}`;

  function size(bytes) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let value = bytes, unit = 0;
    while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
    return `${unit === 0 || value >= 100 ? value.toFixed(0) : Number(value.toPrecision(3))} ${units[unit]}`;
  }

  function share(part, whole) {
    return whole ? `${(100 * part / whole).toFixed(part && part / whole < 0.001 ? 2 : 1)} %` : "–";
  }

  function make(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "text") element.textContent = value;
      else if (key === "class") element.className = value;
      else element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  }

  /* --- light and dark ------------------------------------------------------------------------ */

  const system = matchMedia("(prefers-color-scheme: dark)");
  const onTheme = [];
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);

  function showTheme() {
    const button = byId("theme");
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Use ${isDark() ? "light" : "dark"} colours`);
    onTheme.forEach((redraw) => redraw());
  }

  byId("theme").hidden = false;
  byId("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  system.addEventListener("change", showTheme);

  // A custom property may be light-dark(…), which only resolves where it is used as a colour.
  const probe = make("span", { hidden: "" });
  document.body.append(probe);
  function colour(name) {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  }
  function rgb(name) {
    const found = colour(name).match(/[\d.]+/g).map(Number);
    return found.slice(0, 3);
  }

  /* --- the tooltip --------------------------------------------------------------------------- */

  const tip = byId("tip");

  function showTip(lines, x, y) {
    tip.replaceChildren(...lines.map((text) => make("div", { text })));
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = x + 14 + box.width > innerWidth - 8 ? x - box.width - 14 : x + 14;
    const top = y + 16 + box.height > innerHeight - 8 ? y - box.height - 12 : y + 16;
    tip.style.left = `${Math.max(8, Math.min(left, innerWidth - box.width - 8))}px`;
    tip.style.top = `${Math.max(8, top)}px`;
  }
  const hideTip = () => { tip.hidden = true; };
  addEventListener("scroll", hideTip, { passive: true });
  addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

  /* --- tables -------------------------------------------------------------------------------- */

  function valueOf(cell) {
    const given = cell.dataset.value;
    return given === undefined ? cell.textContent : Number(given);
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a) < String(b) ? -1 : Number(String(a) > String(b));
  }

  /** Let each column's heading sort; `sorted(column, direction)` does it. */
  function sortable(table, sorted) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      if (heading.dataset.plain !== undefined) return;
      const button = make("button", { type: "button", text: heading.textContent });
      heading.replaceChildren(button);
      button.addEventListener("click", () => {
        const first = heading.classList.contains("n") ? "descending" : "ascending";
        const other = first === "ascending" ? "descending" : "ascending";
        const order = heading.getAttribute("aria-sort") === first ? other : first;
        headings.forEach((each) => each.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", order);
        sorted(column, order === "ascending" ? 1 : -1);
      });
    });
  }

  function sortRows(table) {
    sortable(table, (column, direction) => {
      const body = table.tBodies[0];
      const rows = [...body.rows];
      rows.sort((a, b) => direction * compare(valueOf(a.cells[column]), valueOf(b.cells[column])));
      body.append(...rows);
    });
  }
  document.querySelectorAll("table[data-sort]").forEach(sortRows);

  const LETTERS = {
    added: "A", modified: "M", deleted: "D", moved: "R", metadata: "T", unchanged: "=", zeroed: "Z",
  };

  function chip(status) {
    return make("span", { class: `chip s-${status}`, "aria-hidden": "true", text: LETTERS[status] || "" });
  }

  function number(bytes) {
    return make("td", { class: bytes ? "n" : "n zero", text: bytes ? size(bytes) : "–" });
  }

  /* --- the map of the disk ------------------------------------------------------------------- */

  function bytesOf(text) {
    const raw = atob(text);
    return Uint8Array.from(raw, (character) => character.charCodeAt(0));
  }

  const cells = {
    size: data.cells.size,
    count: data.cells.count,
    amount: new Uint16Array(bytesOf(data.cells.amount).buffer),
    change: bytesOf(data.cells.change),
    space: bytesOf(data.cells.space),
    changedSpace: bytesOf(data.cells.changed_space),
    file: new Uint16Array(bytesOf(data.cells.file).buffer),
    partition: new Int16Array(data.cells.count).fill(-1),
    column: null, row: null, at: null, columns: 1, rows: 1,
  };
  const start = (cell) => cell * cells.size;
  const stop = (cell) => Math.min(data.size, start(cell) + cells.size);
  // The share is stored in 65535ths.
  const changed = (cell) => cells.amount[cell] / 65535 * (stop(cell) - start(cell));

  data.partitions.forEach((partition, index) => {
    if (partition.gone) return;
    const last = Math.ceil((partition.start + partition.length) / cells.size);
    for (let cell = Math.floor(partition.start / cells.size); cell < Math.min(last, cells.count); cell += 1) {
      // Where several share a cell, the one that holds its middle has it.
      const middle = start(cell) + cells.size / 2;
      const holds = partition.start <= middle && middle < partition.start + partition.length;
      if (holds || cells.partition[cell] < 0) cells.partition[cell] = index;
    }
  });

  /** A place on a Hilbert curve, as column and row in a square of `side` (a power of two). */
  function hilbert(index, side) {
    let x = 0, y = 0, rest = index;
    for (let step = 1; step < side; step *= 2) {
      const right = 1 & (rest >> 1), up = 1 & (rest ^ right);
      if (!up) {
        if (right) { x = step - 1 - x; y = step - 1 - y; }
        [x, y] = [y, x];
      }
      x += step * right;
      y += step * up;
      rest >>= 2;
    }
    return [x, y];
  }

  /** Give each cell its place in a rectangle that they fill, in rows or along a Hilbert curve. */
  function arrange(kind, ratio) {
    const total = cells.count;
    const columns = Math.max(1, Math.min(total, Math.ceil(Math.sqrt(total * ratio))));
    const rows = Math.ceil(total / columns);
    Object.assign(cells, { columns, rows });
    cells.column = new Uint16Array(total);
    cells.row = new Uint16Array(total);
    cells.at = new Int32Array(columns * rows).fill(-1);
    const put = (cell, x, y) => {
      cells.column[cell] = x; cells.row[cell] = y; cells.at[y * columns + x] = cell;
    };
    if (kind === "rows") {
      for (let cell = 0; cell < total; cell += 1) put(cell, cell % columns, Math.floor(cell / columns));
      return;
    }
    // The curve of the smallest square around, less what lies outside of the rectangle.
    let side = 1;
    while (side < columns || side < rows) side *= 2;
    for (let place = 0, cell = 0; place < side * side && cell < total; place += 1) {
      const [x, y] = hilbert(place, side);
      if (x < columns && y < rows) { put(cell, x, y); cell += 1; }
    }
  }

  /** Where a cell is: in the largest unit that says it exactly. */
  function range(cell) {
    const units = ["B", "KiB", "MiB", "GiB"];
    let unit = 0, scale = 1;
    while (unit < units.length - 1 && cells.size % (scale * 1024) === 0) { unit += 1; scale *= 1024; }
    return `${count(start(cell) / scale)} – ${count(stop(cell) / scale)} ${units[unit]} of the disk`;
  }

  function cellLines(cell) {
    const partition = cells.partition[cell] < 0 ? null : data.partitions[cells.partition[cell]];
    const lines = [
      range(cell),
      partition ? partition.title : "outside any partition",
    ];
    const bytes = changed(cell);
    if (!bytes) return [...lines, `unchanged, mostly ${data.kinds[cells.space[cell]][1]}`];
    lines.push(`${size(bytes)} of ${size(stop(cell) - start(cell))} changed, mostly ` +
      `${data.changes[cells.change[cell]]}, ${data.kinds[cells.changedSpace[cell]][1]}`);
    const file = cells.file[cell];
    if (file === 65535) lines.push("of a file that is not listed here");
    else if (file) lines.push(data.files.rows[file - 1][0]);
    return lines;
  }

  function diskMap() {
    const canvas = byId("map"), context = canvas.getContext("2d"), where = byId("cell");
    const picture = document.createElement("canvas");
    const view = { zoom: 1, x: 0, y: 0 };  // x, y: the column and row at the left upper corner
    let cursor = -1, borders = null, unit = 1, pending = false;
    let pixels = new Uint8ClampedArray();  // the picture's, so that it need not be read back
    const maximum = () => Math.max(1, Math.min(64, 40 / unit));

    function paint() {
      picture.width = cells.columns;
      picture.height = cells.rows;
      const image = new ImageData(cells.columns, cells.rows);
      const byKind = byId("colour").value === "space";
      const none = rgb("cell"), outside = rgb("void");
      const tints = (byKind ? data.kinds.map((kind) => `k-${kind[0]}`) : data.changes).map(rgb);
      for (let cell = 0; cell < cells.count; cell += 1) {
        const at = 4 * (cells.row[cell] * cells.columns + cells.column[cell]);
        const base = cells.partition[cell] < 0 ? outside : none;
        const amount = cells.amount[cell] / 65535;
        const tint = tints[byKind ? (amount ? cells.changedSpace[cell] : cells.space[cell]) : cells.change[cell]];
        // Even the smallest change is seen; unchanged space has a breath of its kind's colour.
        const strength = amount ? 0.38 + 0.62 * amount : byKind ? 0.1 : 0;
        for (let part = 0; part < 3; part += 1) {
          image.data[at + part] = base[part] + (tint ? (tint[part] - base[part]) * strength : 0);
        }
        image.data[at + 3] = 255;
      }
      pixels = image.data;
      picture.getContext("2d").putImageData(image, 0, 0);
      draw();
    }

    function outline() {
      borders = new Path2D();
      const { columns, rows, at } = cells;
      const owner = (x, y) => {
        const cell = x < columns && y < rows ? at[y * columns + x] : -1;
        return cell < 0 ? -2 : cells.partition[cell];
      };
      for (let y = 0; y < rows; y += 1) {
        for (let x = 0; x < columns; x += 1) {
          const own = owner(x, y);
          if (own === -2) continue;
          const right = owner(x + 1, y), down = owner(x, y + 1);
          if (right !== -2 && right !== own) { borders.moveTo(x + 1, y); borders.lineTo(x + 1, y + 1); }
          if (down !== -2 && down !== own) { borders.moveTo(x, y + 1); borders.lineTo(x + 1, y + 1); }
        }
      }
    }

    function fit() {
      // A disk of few cells does not get cells as large as a hand.
      const width = Math.min(canvas.parentElement.clientWidth || 300, cells.columns * 40);
      const scale = devicePixelRatio || 1;
      unit = width / cells.columns;
      canvas.style.width = `${width}px`;
      const height = Math.round(unit * cells.rows);
      canvas.style.height = `${height}px`;
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
      clamp();
      draw();
    }

    function rearrange() {
      const ratio = innerWidth < 640 ? 1 : innerWidth < 960 ? 1.6 : 2.4;
      arrange(byId("layout").value, ratio);
      Object.assign(view, { zoom: 1, x: 0, y: 0 });
      outline();
      paint();
      fit();
    }

    function clamp() {
      view.zoom = Math.max(1, Math.min(maximum(), view.zoom));
      view.x = Math.max(0, Math.min(cells.columns - cells.columns / view.zoom, view.x));
      view.y = Math.max(0, Math.min(cells.rows - cells.rows / view.zoom, view.y));
      canvas.classList.toggle("zoomed", view.zoom > 1);
      byId("zoom-out").disabled = byId("zoom-reset").disabled = view.zoom <= 1;
      byId("zoom-in").disabled = view.zoom >= maximum();
      byId("zoom-level").textContent = `${view.zoom.toFixed(view.zoom < 10 && view.zoom % 1 ? 1 : 0)}×`;
    }

    function draw() {
      if (pending) return;
      pending = true;
      requestAnimationFrame(() => { pending = false; drawNow(); });
    }

    function drawNow() {
      const scale = (canvas.width / cells.columns) * view.zoom;
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.fillStyle = colour("card");
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.setTransform(scale, 0, 0, scale, -view.x * scale, -view.y * scale);
      context.imageSmoothingEnabled = false;
      context.drawImage(picture, 0, 0);
      if (scale / devicePixelRatio >= 9) drawDetail(scale);
      context.strokeStyle = colour("edge");
      context.lineWidth = 1.5 * devicePixelRatio / scale;
      context.stroke(borders);
      if (cursor >= 0) {
        context.lineWidth = 2 * devicePixelRatio / scale;
        const grow = Math.max(0, 3 * devicePixelRatio / scale - 0.5);
        context.strokeStyle = colour("card");
        context.strokeRect(cells.column[cursor] - grow - context.lineWidth, cells.row[cursor] - grow - context.lineWidth,
          1 + 2 * (grow + context.lineWidth), 1 + 2 * (grow + context.lineWidth));
        context.strokeStyle = colour("edge");
        context.strokeRect(cells.column[cursor] - grow, cells.row[cursor] - grow, 1 + 2 * grow, 1 + 2 * grow);
      }
      drawNumbers(scale);
    }

    /** Zoomed in, cells are told apart, and those that changed say how by a letter too. */
    function drawDetail(scale) {
      const lastX = Math.min(cells.columns, Math.ceil(view.x + cells.columns / view.zoom));
      const lastY = Math.min(cells.rows, Math.ceil(view.y + cells.rows / view.zoom));
      context.strokeStyle = colour("card");
      context.lineWidth = devicePixelRatio / scale;
      context.textAlign = "center";
      context.textBaseline = "middle";
      for (let y = Math.floor(view.y); y < lastY; y += 1) {
        for (let x = Math.floor(view.x); x < lastX; x += 1) {
          const cell = cells.at[y * cells.columns + x];
          if (cell < 0) continue;
          context.strokeRect(x, y, 1, 1);
        }
      }
      if (scale / devicePixelRatio < 13) return;
      const factor = scale;
      context.save();
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.font = `600 ${Math.round(factor * 0.55)}px sans-serif`;
      for (let y = Math.floor(view.y); y < lastY; y += 1) {
        for (let x = Math.floor(view.x); x < lastX; x += 1) {
          const cell = cells.at[y * cells.columns + x];
          if (cell < 0 || !cells.amount[cell]) continue;
          const at = 4 * (y * cells.columns + x);
          const bright = 0.299 * pixels[at] + 0.587 * pixels[at + 1] + 0.114 * pixels[at + 2];
          context.fillStyle = bright > 130 ? "#14161a" : "#ffffff";
          context.fillText(LETTERS[data.changes[cells.change[cell]]],
            (x + 0.5 - view.x) * factor, (y + 0.54 - view.y) * factor);
        }
      }
      context.restore();
    }

    /** Number the partitions, each at a cell of its own near the middle of it. */
    function drawNumbers(scale) {
      const ratio = devicePixelRatio;
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.font = `600 ${12 * ratio}px sans-serif`;
      context.textAlign = "center";
      context.textBaseline = "middle";
      data.partitions.forEach((partition, index) => {
        if (partition.gone || !partition.number) return;
        const middle = Math.min(cells.count - 1, Math.floor((partition.start + partition.length / 2) / cells.size));
        if (cells.partition[middle] !== index) return;
        const x = (cells.column[middle] + 0.5 - view.x) * scale, y = (cells.row[middle] + 0.5 - view.y) * scale;
        if (x < 0 || y < 0 || x > canvas.width || y > canvas.height) return;
        const text = String(partition.number), width = context.measureText(text).width + 10 * ratio;
        const height = 18 * ratio;
        const left = Math.max(0, Math.min(canvas.width - width, x - width / 2));
        const top = Math.max(0, Math.min(canvas.height - height, y - height / 2));
        context.fillStyle = colour("edge");
        context.fillRect(left, top, width, height);
        context.fillStyle = colour("card");
        context.fillText(text, left + width / 2, top + height / 2 + ratio);
      });
    }

    function cellAt(event) {
      const box = canvas.getBoundingClientRect();
      const x = Math.floor(view.x + (event.clientX - box.left) / unit / view.zoom);
      const y = Math.floor(view.y + (event.clientY - box.top) / unit / view.zoom);
      if (x < 0 || y < 0 || x >= cells.columns || y >= cells.rows) return -1;
      return cells.at[y * cells.columns + x];
    }

    function select(cell) {
      cursor = cell;
      where.textContent = cell < 0 ? where.dataset.empty : cellLines(cell).join(" · ");
      draw();
    }

    function zoomBy(factor, clientX, clientY) {
      const box = canvas.getBoundingClientRect();
      const [px, py] = clientX !== undefined
        ? [clientX - box.left, clientY - box.top]
        : cursor >= 0
          ? [(cells.column[cursor] + 0.5 - view.x) * unit * view.zoom, (cells.row[cursor] + 0.5 - view.y) * unit * view.zoom]
          : [box.width / 2, box.height / 2];
      const before = view.zoom;
      view.zoom = Math.max(1, Math.min(maximum(), before * factor));
      view.x += px / unit * (1 / before - 1 / view.zoom);
      view.y += py / unit * (1 / before - 1 / view.zoom);
      clamp();
      draw();
    }

    function reveal(cell) {
      const wide = cells.columns / view.zoom, high = cells.rows / view.zoom;
      const x = cells.column[cell], y = cells.row[cell];
      if (x < view.x || x + 1 > view.x + wide) view.x = x + 0.5 - wide / 2;
      if (y < view.y || y + 1 > view.y + high) view.y = y + 0.5 - high / 2;
      clamp();
    }

    function step(dx, dy) {
      const from = cursor < 0 ? 0 : cursor;
      const x = cells.column[from] + dx, y = cells.row[from] + dy;
      if (x < 0 || y < 0 || x >= cells.columns || y >= cells.rows) return;
      const cell = cells.at[y * cells.columns + x];
      if (cell >= 0) { reveal(cell); select(cell); }
    }

    /** Go to the next cell, in the order of the disk, that changed. */
    function seek(direction) {
      for (let cell = cursor + direction; cell >= 0 && cell < cells.count; cell += direction) {
        if (cells.amount[cell]) { reveal(cell); select(cell); return; }
      }
    }

    const keys = {
      ArrowLeft: () => step(-1, 0), ArrowRight: () => step(1, 0),
      ArrowUp: () => step(0, -1), ArrowDown: () => step(0, 1),
      "+": () => zoomBy(1.5), "=": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5),
      "0": () => { Object.assign(view, { zoom: 1 }); clamp(); draw(); },
      n: () => seek(1), p: () => seek(-1),
      Home: () => { reveal(0); select(0); },
      End: () => { reveal(cells.count - 1); select(cells.count - 1); },
    };
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
      event.preventDefault();
      keys[event.key]();
    });

    const fingers = new Map();
    let moved = false;
    canvas.addEventListener("pointerdown", (event) => {
      fingers.set(event.pointerId, event);
      moved = false;
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) {
        const cell = cellAt(event);
        if (cell < 0) { hideTip(); return; }
        showTip(cellLines(cell), event.clientX, event.clientY);
        return;
      }
      const others = [...fingers.values()].filter((each) => each.pointerId !== event.pointerId);
      if (others.length) {
        const other = others[0];
        const distance = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) || 1;
        zoomBy(distance(event) / distance(before), other.clientX, other.clientY);
      } else {
        view.x -= (event.clientX - before.clientX) / unit / view.zoom;
        view.y -= (event.clientY - before.clientY) / unit / view.zoom;
        clamp();
        draw();
      }
      if (Math.hypot(event.clientX - before.clientX, event.clientY - before.clientY) > 1) { moved = true; hideTip(); }
      fingers.set(event.pointerId, event);
    });
    const lift = (event) => fingers.delete(event.pointerId);
    canvas.addEventListener("pointerup", (event) => {
      lift(event);
      if (moved) return;
      const cell = cellAt(event);
      if (cell < 0) return;
      select(cell);
      showTip(cellLines(cell), event.clientX, event.clientY);
    });
    canvas.addEventListener("pointercancel", lift);
    canvas.addEventListener("pointerleave", hideTip);
    canvas.addEventListener("dblclick", (event) => zoomBy(2, event.clientX, event.clientY));
    canvas.addEventListener("wheel", (event) => {
      // The page scrolls as ever until the map is in use.
      if (!event.ctrlKey && document.activeElement !== canvas) return;
      event.preventDefault();
      zoomBy(event.deltaY < 0 ? 1.25 : 0.8, event.clientX, event.clientY);
    }, { passive: false });

    byId("zoom-in").addEventListener("click", () => zoomBy(2));
    byId("zoom-out").addEventListener("click", () => zoomBy(0.5));
    byId("zoom-reset").addEventListener("click", keys["0"]);
    byId("layout").addEventListener("change", rearrange);
    byId("colour").addEventListener("change", () => {
      const byKind = byId("colour").value === "space";
      byId("map-changes").hidden = byKind;
      byId("map-kinds").hidden = !byKind;
      paint();
    });
    onTheme.push(paint);
    let width = innerWidth;
    addEventListener("resize", () => {
      const crossed = [640, 960].some((limit) => (innerWidth < limit) !== (width < limit));
      width = innerWidth;
      if (crossed) rearrange(); else fit();
    });
    rearrange();
    select(-1);
  }

  /* --- the treemap of changed files ---------------------------------------------------------- */

  const [PARENT, NAME, CHANGED, FREED, COUNT, KIND] = [0, 1, 2, 3, 4, 5];

  /** Lay values out in a rectangle as tiles of their areas, as square as can be. */
  function squarify(values, x, y, width, height) {
    const total = values.reduce((sum, value) => sum + value, 0);
    const factor = width * height / total;
    const tiles = [];
    let from = 0;
    while (from < values.length) {
      const side = Math.min(width, height);
      const worst = (area, largest, smallest) =>
        Math.max(side * side * largest / (area * area), area * area / (side * side * smallest));
      let until = from, area = 0;
      while (until < values.length) {
        const next = values[until] * factor;
        if (until > from && worst(area + next, values[from] * factor, next) >
          worst(area, values[from] * factor, values[until - 1] * factor)) break;
        area += next;
        until += 1;
      }
      const depth = side ? area / side : 0;
      let offset = 0;
      for (let index = from; index < until; index += 1) {
        const length = depth ? values[index] * factor / depth : 0;
        tiles.push(width >= height ? [x, y + offset, depth, length] : [x + offset, y, length, depth]);
        offset += length;
      }
      if (width >= height) { x += depth; width -= depth; } else { y += depth; height -= depth; }
      from = until;
    }
    return tiles;
  }

  function treemap() {
    const nodes = data.tree, box = byId("treemap"), table = byId("directory");
    const children = nodes.map(() => []);
    nodes.forEach((node, index) => { if (index) children[node[PARENT]].push(index); });
    children.forEach((list) => list.sort((a, b) => nodes[b][CHANGED] - nodes[a][CHANGED]));
    let here = 0;

    const kindOf = (index) => nodes[index][KIND];
    const isDirectory = (index) => kindOf(index) === "directory";
    const label = (index) => {
      if (kindOf(index) === "rest") return `${plural(nodes[index][COUNT], "smaller file")}`;
      return nodes[index][NAME] + (isDirectory(index) && index ? "/" : "");
    };
    function lineage(index) {
      const found = [index];
      while (found[0]) found.unshift(nodes[found[0]][PARENT]);
      return found;
    }
    const pathOf = (index) => lineage(index).slice(1).map(label).join("");

    function describe(index) {
      const node = nodes[index];
      const lines = [pathOf(index) || "the whole disk", `${size(node[CHANGED])} changed, ${share(node[CHANGED], nodes[0][CHANGED])} of all files'`];
      if (node[FREED]) lines.push(`${size(node[FREED])} freed`);
      lines.push(isDirectory(index) || kindOf(index) === "rest" ? plural(node[COUNT], "changed file") : kindOf(index));
      return lines;
    }

    function tile(index, [x, y, width, height], open) {
      const kind = kindOf(index), directory = isDirectory(index);
      const element = make(directory ? "button" : "div", {
        class: `tile s-${kind}${directory ? " dir" : ""}${directory && !open ? " closed" : ""}`,
        tabindex: "-1", "aria-label": describe(index).join(", "),
      });
      if (directory) element.type = "button";
      else element.setAttribute("role", "img");
      Object.assign(element.style, {
        left: `${x}px`, top: `${y}px`, width: `${Math.max(1, width - 1)}px`, height: `${Math.max(1, height - 1)}px`,
      });
      if (width > 34 && height > 17) {
        element.classList.toggle("line", open || height < 36);
        element.append(make("b", { text: label(index) }));
        // A figure is whole or not there: half of one would be another.
        if (width > (element.classList.contains("line") ? 120 : 68)) {
          element.append(make("span", { text: size(nodes[index][CHANGED]) }));
        }
      } else {
        element.classList.add("tiny");
      }
      element.addEventListener("pointermove", (event) => showTip(describe(index), event.clientX, event.clientY));
      element.addEventListener("pointerleave", hideTip);
      element.addEventListener("focus", () => {
        if (!element.matches(":focus-visible")) return;
        const place = element.getBoundingClientRect();
        showTip(describe(index), place.left, Math.min(place.bottom, place.top + 20));
      });
      element.addEventListener("blur", hideTip);
      if (directory) element.addEventListener("click", () => go(index, true));
      box.append(element);
    }

    /** Draw what is in a directory, level by level, so that what there is no room for is deepest. */
    function lay(top) {
      const levels = [[top, [0, 0, box.clientWidth, box.clientHeight], 0]];
      for (const [index, rectangle, depth] of levels) {
        const list = children[index].filter((child) => nodes[child][CHANGED] > 0);
        const tiles = squarify(list.map((child) => nodes[child][CHANGED]), ...rectangle);
        list.forEach((child, position) => {
          const [x, y, width, height] = tiles[position];
          if (width * height < 10 || box.childElementCount >= 1500) return;
          const open = isDirectory(child) && depth < 8 && width > 48 && height > 44;
          tile(child, tiles[position], open);
          if (open) levels.push([child, [x + 3, y + 19, width - 7, height - 23], depth + 1]);
        });
      }
    }

    function draw() {
      const focused = box.contains(document.activeElement);
      box.replaceChildren();
      lay(here);
      const first = box.firstElementChild;
      if (first) { first.tabIndex = 0; if (focused) first.focus(); }
      box.dataset.empty = first ? "" : "yes";
    }

    function list() {
      const body = table.tBodies[0];
      const rows = children[here].map((index) => {
        const node = nodes[index];
        const name = make("th", { scope: "row", class: "path" });
        if (isDirectory(index)) {
          const button = make("button", { type: "button", text: label(index) });
          button.addEventListener("click", () => go(index, true));
          name.append(button);
        } else {
          name.textContent = label(index);
        }
        const status = make("td", { class: "tag" });
        const kind = kindOf(index);
        if (!isDirectory(index) && kind !== "rest") status.append(chip(kind));
        status.append(kind === "rest" ? "various" : kind);
        const files = make("td", { class: "n", text: count(node[COUNT]) });
        const row = make("tr", {}, name, status, number(node[CHANGED]), number(node[FREED]), files);
        [label(index), kind, node[CHANGED], node[FREED], node[COUNT]].forEach((value, column) => {
          if (typeof value === "number") row.cells[column].dataset.value = value;
        });
        return row;
      });
      body.replaceChildren(...rows);
      table.caption.textContent = `In ${pathOf(here) || "all partitions"}: ${size(nodes[here][CHANGED])} changed by ${plural(nodes[here][COUNT], "file")}`;
      table.querySelectorAll("[aria-sort]").forEach((heading) => heading.removeAttribute("aria-sort"));
    }

    function go(index, focus) {
      here = index;
      hideTip();
      const crumbs = lineage(here).map((each) => {
        const text = label(each);
        if (each === here) return make("li", {}, make("span", { "aria-current": "true", text }));
        const button = make("button", { type: "button", text });
        button.addEventListener("click", () => go(each, true));
        return make("li", {}, button);
      });
      byId("crumbs").replaceChildren(...crumbs);
      draw();
      list();
      if (focus && box.firstElementChild && box.firstElementChild.matches) box.firstElementChild.focus({ preventScroll: true });
    }

    box.addEventListener("keydown", (event) => {
      const tiles = [...box.children], position = tiles.indexOf(document.activeElement);
      const to = { ArrowRight: position + 1, ArrowDown: position + 1, ArrowLeft: position - 1, ArrowUp: position - 1, Home: 0, End: tiles.length - 1 }[event.key];
      if (to !== undefined && tiles[to]) {
        event.preventDefault();
        tiles[position].tabIndex = -1;
        tiles[to].tabIndex = 0;
        tiles[to].focus();
      } else if ((event.key === "Backspace" || event.key === "Escape") && here) {
        event.preventDefault();
        go(nodes[here][PARENT], true);
      }
    });
    sortRows(table);
    let width = box.clientWidth;
    new ResizeObserver(() => {
      if (box.clientWidth !== width) { width = box.clientWidth; draw(); }
    }).observe(box);
    // A disk of one partition begins in it.
    const top = children[0];
    go(top.length === 1 && isDirectory(top[0]) ? top[0] : 0, false);
  }

  /* --- the table of files -------------------------------------------------------------------- */

  function fileTable() {
    const [PATH, STATUS, PARTITION, SIZE, CHANGED_BYTES, FREED_BYTES, TYPE, OLD_PATH] = [0, 1, 2, 3, 4, 5, 6, 7];
    const table = byId("files"), filter = byId("filter"), status = byId("status"), more = byId("more");
    const columns = [PATH, STATUS, CHANGED_BYTES, FREED_BYTES, SIZE];
    if (table.tHead.rows[0].cells.length > columns.length) columns.push(PARTITION);
    let rows = [...data.files.rows], found = rows, shown = 0;

    function pathCell(row) {
      const text = row[PATH], cut = text.lastIndexOf("/") + 1;
      const cell = make("th", { scope: "row", class: "path" }, make("i", { text: text.slice(0, cut) }), text.slice(cut));
      if (row[OLD_PATH] && row[OLD_PATH] !== text) cell.append(make("span", { class: "detail", text: `was ${row[OLD_PATH]}` }));
      else if (data.types[row[TYPE]] !== "file") cell.append(make("span", { class: "detail", text: data.types[row[TYPE]] }));
      return cell;
    }

    function line(row) {
      const kind = data.statuses[row[STATUS]];
      const cell = make("td", { class: "tag" }, chip(kind), kind);
      const made = make("tr", {}, pathCell(row), cell, number(row[CHANGED_BYTES]), number(row[FREED_BYTES]), number(row[SIZE]));
      if (columns.length > 5) made.append(make("td", { text: data.partitions[row[PARTITION]].short }));
      return made;
    }

    function extend(by) {
      const next = found.slice(shown, shown + by);
      table.tBodies[0].append(...next.map(line));
      shown += next.length;
      more.hidden = shown >= found.length;
      more.textContent = `Show ${count(Math.min(200, found.length - shown))} more`;
      byId("shown").textContent = `${count(shown)} of ${plural(found.length, "file")} shown` +
        (found.length < rows.length ? `, filtered from ${count(rows.length)}` : "");
    }

    function refresh() {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      found = rows.filter((row) =>
        (status.value === "" || row[STATUS] === Number(status.value)) &&
        words.every((word) => row[PATH].toLowerCase().includes(word)));
      table.tBodies[0].replaceChildren();
      shown = 0;
      extend(50);
    }

    sortable(table, (column, direction) => {
      const field = columns[column];
      const key = field === STATUS ? (row) => data.statuses[row[STATUS]] : (row) => row[field];
      rows.sort((a, b) => direction * compare(key(a), key(b)));
      refresh();
    });
    table.tHead.rows[0].cells[columns.indexOf(CHANGED_BYTES)].setAttribute("aria-sort", "descending");
    filter.addEventListener("input", refresh);
    status.addEventListener("change", refresh);
    more.addEventListener("click", () => {
      const first = shown;
      extend(200);
      const row = table.tBodies[0].rows[first];
      if (row && more.hidden) { row.tabIndex = -1; row.focus(); }
    });
    refresh();
  }

  if (byId("map")) diskMap();
  if (byId("treemap")) treemap();
  if (byId("files")) fileTable();
  showTheme();
  root.dataset.ready = "yes";
})();

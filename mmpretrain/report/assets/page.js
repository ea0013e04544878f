"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const pictures = read("pictures"), charts = read("charts");
  for (const img of document.querySelectorAll("img[data-i]")) img.src = pictures[img.dataset.i] || "";

  // Switches between validations.
  for (const box of document.querySelectorAll(".switched")) {
    const buttons = [...box.querySelectorAll("button[data-to]")];
    const show = (to) => {
      for (const b of buttons) b.setAttribute("aria-pressed", b.dataset.to === to ? "true" : "false");
      for (const part of box.querySelectorAll(".at")) part.hidden = part.dataset.at !== to;
    };
    for (const b of buttons) b.addEventListener("click", () => show(b.dataset.to));
  }

  // Heat maps: one byte a patch, painted on a canvas as large as the grid; the browser interpolates.
  const heat = [[0.1, 0.06, 0.35], [0.45, 0.1, 0.55], [0.85, 0.25, 0.35], [1, 0.6, 0.1], [1, 0.95, 0.45]];
  const colour = (v) => {
    const at = Math.min(v, 0.9999) * (heat.length - 1), i = Math.floor(at), f = at - i;
    return heat[i].map((c, k) => Math.round(255 * (c + f * (heat[i + 1][k] - c))));
  };
  for (const canvas of document.querySelectorAll("canvas[data-w]")) {
    const rows = +canvas.dataset.rows, columns = +canvas.dataset.columns, bytes = atob(canvas.dataset.w);
    if (!rows || !columns) continue;
    canvas.width = columns; canvas.height = rows;
    const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
    for (let i = 0; i < rows * columns; i++) {
      const v = bytes.charCodeAt(i) / 255;
      image.data.set([...colour(v), Math.round(255 * (0.5 + 0.12 * v))], 4 * i);
    }
    context.putImageData(image, 0, 0);
  }

  // Curves.
  const paint = (i) => `c${i % COLOURS}${i < COLOURS ? "" : " again"}`;  // a second round of colours is dashed
  const COLOURS = 8, NS = "http://www.w3.org/2000/svg", HEIGHT = 190, PAD = { left: 52, right: 12, top: 10, bottom: 24 };
  const state = { smooth: 0.8, log: false, clock: false, hover: null };
  const make = (parent, name, attributes, text) => {
    const node = document.createElementNS(NS, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  };
  const format = (v, unit) => {
    if (v === null || v === undefined) return "–";
    if (unit === "%") return (100 * v).toFixed(1) + " %";
    const a = Math.abs(v);
    if (a >= 1e5) return v.toExponential(1);
    if (a >= 100 || v === Math.round(v)) return v.toFixed(0);
    return a >= 0.001 || a === 0 ? String(+v.toPrecision(3)) : v.toExponential(1);
  };
  const smoothed = (values, weight) => {
    let mean = 0, norm = 0;
    return values.map((v) => {
      if (v === null) return null;
      mean = weight * mean + (1 - weight) * v; norm = weight * norm + (1 - weight);
      return mean / norm;
    });
  };
  const ticks = (low, high, count) => {
    const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999) || power, made = [];
    for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) made.push(Math.abs(v) < step * 1e-6 ? 0 : v);
    made.step = step;
    return made;
  };
  // As many decimals as the distance of two ticks needs.
  const label = (v, step) => {
    if (!step || Math.abs(v) >= 1e5 || (v !== 0 && step < 1e-4)) return format(+v.toPrecision(6), "");
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    return v.toFixed(Math.abs(step * 10 ** digits - Math.round(step * 10 ** digits)) > 1e-6 ? digits + 1 : digits);
  };
  const logTicks = (low, high) => {
    const made = [], decades = Math.log10(high / low), factors = decades > 2 ? [1] : decades > 0.8 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
      for (const f of factors) if (f * 10 ** e >= low * 0.999 && f * 10 ** e <= high * 1.001) made.push(f * 10 ** e);
    const skip = Math.ceil(made.length / 6);
    return made.filter((_, i) => i % skip === 0);
  };
  const range = (values, log, share) => {
    let low = Infinity, high = -Infinity;
    for (const v of values) if (v !== null && (!log || v > 0)) { if (v < low) low = v; if (v > high) high = v; }
    if (low > high) return null;
    if (log) return low === high ? [low / 2, high * 2] : [low / (high / low) ** 0.05, high * (high / low) ** 0.05];
    const room = high === low ? Math.abs(high) * 0.1 || 1 : 0.06 * (high - low);
    return [low >= 0 && low - room < 0 ? 0 : low - room, share && high <= 1 && high + room > 1 ? 1.005 : high + room];
  };

  const views = [...document.querySelectorAll(".plot")].map((box) => ({ box, chart: charts[+box.dataset.chart] }));
  for (const view of views) {
    const { box, chart } = view;
    box.tabIndex = 0;
    view.svg = make(box, "svg", { role: "img" });
    view.legend = document.createElement("ul");
    view.legend.className = "legend";
    box.append(view.legend);
    view.items = chart.lines.map((line, i) => {
      const item = document.createElement("li"), name = document.createElement("span"), value = document.createElement("b");
      item.className = paint(i);
      name.textContent = line.name;
      item.append(name, value);
      view.legend.append(item);
      return value;
    });
    const seek = (event) => {
      const at = event.clientX - view.svg.getBoundingClientRect().left;
      if (view.inverse) hover(view.inverse(at));
    };
    view.svg.addEventListener("pointermove", seek);
    view.svg.addEventListener("pointerdown", seek);
    view.svg.addEventListener("pointerleave", () => hover(null));
    box.addEventListener("blur", () => hover(null));
    box.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by) return;
      event.preventDefault();
      const xs = axis(chart.lines[0]), i = state.hover === null ? (by > 0 ? -1 : xs.length) : nearest(xs, state.hover);
      hover(xs[Math.max(0, Math.min(xs.length - 1, i + by))]);
    });
  }
  const axis = (line) => (state.clock ? line.t : line.x);
  const nearest = (xs, x) => {
    let best = 0;
    for (let i = 1; i < xs.length; i++) if (xs[i] !== null && Math.abs(xs[i] - x) <= Math.abs((xs[best] ?? Infinity) - x)) best = i;
    return best;
  };
  const sets = (view) => view.chart.lines.map((line) => {
    const few = line.y.length < 12;
    return { x: axis(line), raw: line.y, y: few ? line.y : smoothed(line.y, state.smooth), few };
  });

  const draw = (view) => {
    const width = view.box.clientWidth;
    if (!width) return;
    view.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    view.svg.setAttribute("height", HEIGHT);
    view.svg.replaceChildren();
    view.lines = sets(view);
    const first = view.chart.lines[0], ends = first.y.filter((v) => v !== null);
    view.svg.setAttribute("aria-label", `${view.chart.title}: ${first.name} from ${format(ends[0], view.chart.unit)} to ${format(ends[ends.length - 1], view.chart.unit)} in ${first.x[first.x.length - 1]} steps`);
    const ys = range(view.lines.flatMap((l) => (l.few || state.smooth < 0.3 ? l.raw : l.y.concat(trim(l.raw)))), state.log, view.chart.unit === "%");
    const xs = view.lines.flatMap((l) => l.x).filter((v) => v !== null);
    view.inverse = null;
    if (!ys || !xs.length) { make(view.svg, "text", { x: width / 2, y: HEIGHT / 2, class: "none" }, "nothing above zero to show on a log scale"); return; }
    let x0 = Math.min(...xs), x1 = Math.max(...xs);
    if (x0 === x1) { x0 -= 1; x1 += 1; }
    const scale = state.log ? Math.log : (v) => v;
    const X = (v) => PAD.left + (v - x0) / (x1 - x0) * (width - PAD.left - PAD.right);
    const Y = (v) => HEIGHT - PAD.bottom - (scale(v) - scale(ys[0])) / (scale(ys[1]) - scale(ys[0])) * (HEIGHT - PAD.top - PAD.bottom);
    Object.assign(view, { X, Y, inverse: (at) => Math.max(x0, Math.min(x1, x0 + (at - PAD.left) / (width - PAD.left - PAD.right) * (x1 - x0))) });
    const share = view.chart.unit === "%", marks = state.log ? logTicks(...ys) : ticks(ys[0], ys[1], 4);
    for (const v of marks) {
      make(view.svg, "line", { x1: PAD.left, x2: width - PAD.right, y1: Y(v), y2: Y(v), class: "grid" });
      make(view.svg, "text", { x: PAD.left - 6, y: Y(v) + 4, class: "y" }, share ? label(100 * v, 100 * (marks.step || 0)) + " %" : label(v, marks.step));
    }
    for (const v of ticks(x0, x1, Math.max(2, Math.floor(width / 90)))) make(view.svg, "text", { x: X(v), y: HEIGHT - 6, class: "x" }, format(+v.toPrecision(6), "") + (state.clock ? " min" : ""));
    const path = (set, values) => {
      let d = "", pen = false;
      values.forEach((v, i) => {
        if (v === null || set.x[i] === null || (state.log && v <= 0)) { pen = false; return; }
        d += (pen ? "L" : "M") + X(set.x[i]).toFixed(1) + " " + Math.max(-HEIGHT, Math.min(2 * HEIGHT, Y(v))).toFixed(1);
        pen = true;
      });
      return d;
    };
    const clip = "clip" + view.box.dataset.chart;
    make(make(view.svg, "clipPath", { id: clip }), "rect", { x: PAD.left - 4, y: PAD.top - 6, width: width - PAD.left - PAD.right + 8, height: HEIGHT - PAD.top - PAD.bottom + 8 });
    const plot = make(view.svg, "g", { "clip-path": `url(#${clip})` });
    view.lines.forEach((set, i) => {
      if (!set.few && state.smooth > 0) make(plot, "path", { d: path(set, set.raw), class: `raw c${i % COLOURS}` });
      make(plot, "path", { d: path(set, set.y), class: `line ${paint(i)}` });
      if (set.few) set.y.forEach((v, k) => v !== null && set.x[k] !== null && (!state.log || v > 0) && make(plot, "circle", { cx: X(set.x[k]), cy: Y(v), r: 2.5, class: `dot c${i % COLOURS}` }));
    });
    view.over = make(view.svg, "g", {});
    mark(view);
  };
  // Spikes of the raw line beyond the central 98 % do not set the axis.
  const trim = (values) => {
    const sorted = values.filter((v) => v !== null).sort((a, b) => a - b), cut = Math.floor(sorted.length / 100);
    return sorted.slice(cut, sorted.length - cut);
  };
  const mark = (view) => {
    if (!view.inverse) return;
    view.over.replaceChildren();
    if (state.hover !== null) make(view.over, "line", { x1: view.X(state.hover), x2: view.X(state.hover), y1: PAD.top, y2: HEIGHT - PAD.bottom, class: "cross" });
    view.lines.forEach((set, i) => {
      const last = set.y.reduce((found, v, k) => (v === null ? found : k), 0), k = state.hover === null ? last : nearest(set.x, state.hover);
      const v = set.y[k];
      view.items[i].textContent = format(v, view.chart.unit) + (state.hover === null ? "" : ` at ${format(set.x[k], "")}${state.clock ? " min" : ""}`);
      if (state.hover !== null && v !== null && set.x[k] !== null && (!state.log || v > 0)) make(view.over, "circle", { cx: view.X(set.x[k]), cy: view.Y(v), r: 3.5, class: `dot c${i % COLOURS}` });
    });
  };
  let waiting = false;
  const hover = (x) => {
    state.hover = x;
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; views.forEach(mark); });
  };
  const all = () => { state.hover = null; views.forEach(draw); };
  const on = (id, event, act) => document.getElementById(id)?.addEventListener(event, act);
  on("smooth", "input", (e) => { state.smooth = +e.target.value; e.target.nextElementSibling.value = state.smooth.toFixed(2); all(); });
  on("log", "change", (e) => { state.log = e.target.checked; all(); });
  on("clock", "change", (e) => { state.clock = e.target.checked; all(); });
  const fit = () => views.forEach((view) => {
    if (view.width === view.box.clientWidth) return;
    view.width = view.box.clientWidth;
    draw(view);
  });
  const observer = new ResizeObserver(() => requestAnimationFrame(fit));  // drawing inside the observer would be a loop
  fit();
  views.forEach((view) => observer.observe(view.box));
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
})();

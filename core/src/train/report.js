"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("data").textContent);
  const host = document.getElementById("charts");
  if (host) draw();
  filterSamples();

  function draw() {
    const smooth = document.getElementById("smooth");
    const shown = document.getElementById("smooth-value");
    const log = document.getElementById("log");
    // Points are in order, so the ends are enough (and a spread over all of them is not safe).
    const ends = charts.flatMap(c => c.series.map(s => [s.points[0][0], s.points.at(-1)[0]]));
    const last = Math.max(1, ...ends.map(e => e[1]));
    const least = Math.min(...ends.map(e => e[0]));
    const first = least <= 1 ? 0 : Math.min(least, last - 1);
    const views = charts.map(chart => new View(chart, first, last));
    views.forEach(view => {
      host.append(view.card);
      // One cross-hair for all charts: what happened at this step everywhere.
      view.onstep = step => views.forEach(other => other.point(step));
    });
    const paint = () => {
      shown.textContent = Number(smooth.value).toFixed(2);
      views.forEach(view => view.paint(Number(smooth.value), log.checked));
    };
    smooth.addEventListener("input", paint);
    log.addEventListener("change", paint);
    let width = 0;
    new ResizeObserver(() => {
      if (host.clientWidth !== width) { width = host.clientWidth; paint(); }
    }).observe(host);
    paint();
  }

  // Exponential moving average without the pull of its start (as Adam corrects its moments).
  function smoothed(points, weight) {
    let mean = 0, sum = 0;
    return points.map(([step, value]) => {
      if (value === null) return [step, null];
      mean = weight * mean + (1 - weight) * value;
      sum = weight * sum + (1 - weight);
      return [step, mean / sum];
    });
  }

  function text(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2).replace(/\.?0+e\+?/, "e").replace("e+", "e");
    if (size >= 1000) return Math.round(value).toLocaleString("en");
    return String(Number(value.toPrecision(4)));
  }

  function ticks(low, high, wanted) {
    const raw = (high - low) / wanted;
    const power = Math.pow(10, Math.floor(Math.log10(raw)));
    const step = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= raw * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
    return found;
  }

  function logTicks(low, high) {
    const found = [];
    for (let power = Math.floor(low); power <= high; power++)
      for (const m of high - low > 2.5 ? [1] : [1, 2, 5]) {
        const at = power + Math.log10(m);
        if (at >= low && at <= high) found.push(at);
      }
    return found.length > 1 ? found : ticks(low, high, 4);
  }

  function svg(name, attributes, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    element.append(...children);
    return element;
  }

  function html(name, className, ...children) {
    const element = document.createElement(name);
    element.className = className;
    element.append(...children);
    return element;
  }

  function View(chart, first, last) {
    const view = this;
    const margin = { left: 54, right: 12, top: 10, bottom: 24 }, height = 220;
    const color = index => `var(--c${index % 6})`;
    const frame = svg("svg", { role: "img", "aria-label": chart.title });
    const figures = chart.series.map((series, index) => {
      const swatch = html("i", ""), figure = html("b", "");
      swatch.style.background = color(index);
      const name = chart.series.length > 1 ? series.name + " " : "";
      return { figure, label: html("span", "", swatch, name, figure) };
    });
    const at = html("span", "");
    view.card = html("div", "card chart",
      html("div", "head", html("h3", "", chart.title),
        html("div", "legend", at, ...figures.map(f => f.label))), frame);
    let lines = [], x, y, cross, width;

    view.paint = (weight, wantLog) => {
      width = Math.max(260, frame.clientWidth || 520);
      frame.setAttribute("viewBox", `0 0 ${width} ${height}`);
      frame.replaceChildren();
      // A curve with few points (evaluation) is shown as it is, and so is one without noise.
      const noisy = series => series.points.length > 20 && chart.title !== "learning_rate";
      lines = chart.series.map(series => ({
        raw: series.points,
        line: noisy(series) ? smoothed(series.points, weight) : series.points,
      }));
      const values = lines.flatMap(l => l.raw.map(p => p[1])).filter(v => v !== null);
      const isLog = wantLog && values.length > 0 && values.every(v => v > 0);
      const scale = v => isLog ? Math.log10(v) : v;
      let low = scale(Math.min(...values)), high = scale(Math.max(...values));
      if (!values.length) { low = 0; high = 1; }
      if (!isLog && low > 0 && low < high * 0.6) low = 0;
      if (high - low < Math.abs(high) * 1e-6 || high === low) {
        const pad = isLog ? 0.5 : Math.abs(high) * 0.1 || 1;
        low -= pad; high += pad;
      } else {
        const pad = (high - low) * 0.06;
        high += pad;
        if (low !== 0 || isLog) low -= pad;
      }
      const right = width - margin.right, bottom = height - margin.bottom;
      x = step => margin.left + (step - first) / (last - first) * (right - margin.left);
      y = v => bottom - (scale(v) - low) / (high - low) * (bottom - margin.top);
      for (const tick of isLog ? logTicks(low, high) : ticks(low, high, 4)) {
        const value = isLog ? Math.pow(10, tick) : tick, py = y(value);
        frame.append(
          svg("line", { x1: margin.left, x2: right, y1: py, y2: py, stroke: "var(--grid)" }),
          svg("text", { x: margin.left - 8, y: py + 4, "text-anchor": "end" }, text(value)));
      }
      const steps = ticks(first, last, width / 90).filter(Number.isInteger);
      for (const tick of steps)
        frame.append(svg("text", { x: x(tick), y: height - 7, "text-anchor": right - x(tick) < 12 ? "end" : "middle" }, text(tick)));
      frame.append(svg("line", { x1: margin.left, x2: right, y1: bottom, y2: bottom, stroke: "var(--line)" }));
      lines.forEach(({ raw, line }, index) => {
        if (line !== raw && weight > 0)
          frame.append(svg("path", { d: path(raw), fill: "none", stroke: color(index), "stroke-width": 1, opacity: 0.25 }));
        frame.append(svg("path", { d: path(line), fill: "none", stroke: color(index), "stroke-width": 1.9, "stroke-linejoin": "round" }));
        if (raw.length <= 20)
          raw.filter(p => p[1] !== null).forEach(p =>
            frame.append(svg("circle", { cx: x(p[0]), cy: y(p[1]), r: 2.8, fill: color(index) })));
      });
      cross = svg("g", {});
      frame.append(cross);
      view.point(null);
    };

    // A value that is not finite breaks the line, so that it is seen.
    function path(points) {
      let d = "", pen = "M";
      for (const [step, value] of points) {
        if (value === null) { pen = "M"; continue; }
        d += `${pen}${x(step).toFixed(1)} ${y(value).toFixed(1)}`;
        pen = "L";
      }
      return d;
    }

    view.point = step => {
      cross.replaceChildren();
      at.textContent = "";
      if (step !== null) {
        at.textContent = `step ${step.toLocaleString("en")}`;
        cross.append(svg("line", { x1: x(step), x2: x(step), y1: margin.top, y2: height - margin.bottom,
          stroke: "var(--soft)", "stroke-dasharray": "2 3" }));
      }
      lines.forEach(({ raw, line }, index) => {
        let found = step === null ? raw.length - 1 : nearest(raw, step);
        const point = raw[found];
        figures[index].figure.textContent = point ? text(point[1]) : "–";
        if (step !== null && point && line[found][1] !== null)
          cross.append(svg("circle", { cx: x(point[0]), cy: y(line[found][1]), r: 3.5, fill: color(index),
            stroke: "var(--card)", "stroke-width": 1.5 }));
      });
    };

    frame.addEventListener("pointermove", event => {
      const box = frame.getBoundingClientRect();
      const wanted = first + ((event.clientX - box.left) / box.width * width - margin.left)
        / (width - margin.left - margin.right) * (last - first);
      const longest = chart.series.reduce((a, b) => b.points.length > a.points.length ? b : a);
      const found = nearest(longest.points, wanted);
      if (found >= 0) view.onstep(longest.points[found][0]);
    });
    frame.addEventListener("pointerleave", () => view.onstep(null));
  }

  function nearest(points, step) {
    let low = 0, high = points.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < step) low = middle + 1; else high = middle;
    }
    return low > 0 && step - points[low - 1][0] < points[low][0] - step ? low - 1 : low;
  }

  function filterSamples() {
    const filters = document.getElementById("filters");
    if (!filters) return;
    filters.addEventListener("click", event => {
      const show = event.target.dataset.show;
      if (!show) return;
      for (const button of filters.children) button.setAttribute("aria-pressed", button === event.target);
      for (const sample of document.querySelectorAll(".sample"))
        sample.hidden = show !== "all" && sample.dataset.change !== show;
    });
  }
})();

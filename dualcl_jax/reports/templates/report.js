'use strict';
(() => {
  const { panels, runs } = JSON.parse(document.getElementById('data').textContent);
  const DASHES = ['', '6 4', '2 3'];
  const CLASS_COLOURS = 10;
  const TIP_TEXTS = 3;
  const RAMP = ['#414487', '#2a788e', '#22a884', '#7ad151', '#f2d024'];

  function svg(name, attributes = {}, parent = null) {
    const node = document.createElementNS('http://www.w3.org/2000/svg', name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (parent) parent.append(node);
    return node;
  }

  function html(name, className, text = '') {
    const node = document.createElement(name);
    node.className = className;
    node.textContent = text;
    return node;
  }

  function format(value, unit) {
    if (unit === '%') return (100 * value).toFixed(1) + ' %';
    return Math.abs(value) >= 100 ? Math.round(value).toLocaleString('en') : value.toPrecision(3);
  }

  /** Three to seven round numbers from low to high, at least `least` apart. */
  function ticks(low, high, least = 0) {
    const rough = (high - low) / 3 || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = Math.max([5, 2, 1].map((m) => m * power).find((s) => s <= rough), least);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step + 0); // no -0
    return { found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
  }

  // Curves: one line for each run and metric. A readout shows all values at the step of the pointer.

  function linesOf(panel) {
    const lines = [];
    runs.forEach((run, place) =>
      panel.lines.forEach(({ metric, name, reference }, order) => {
        const all = run.series[metric] || [];
        const points = panel.settles ? all.filter(([step]) => step >= run.settled) : all;
        const colour = runs.length > 1 ? place % 6 : order;
        if (points.length) lines.push({ points, name, colour, dash: DASHES[order], reference });
      }));
    return lines;
  }

  function drawPanel(figure) {
    const panel = panels[figure.dataset.panel];
    const plot = figure.querySelector('.plot');
    const lines = linesOf(panel);
    const [width, height, left, right, top, bottom] = [plot.clientWidth, 190, 54, 8, 10, 24];
    const lastStep = Math.max(1, ...runs.flatMap((run) => Object.values(run.series).map((points) => points.at(-1)[0])));
    const values = lines.flatMap(({ points }) => points.map(([, value]) => value));
    let [low, high] = [Math.min(...values), Math.max(...values)];
    const pad = 0.06 * (high - low) || 0.1 * Math.abs(high) || 1;
    [low, high] = [low >= 0 ? Math.max(0, low - pad) : low - pad, high + pad];
    const x = (step) => left + (step / lastStep) * (width - left - right);
    const y = (value) => top + ((high - value) / (high - low)) * (height - top - bottom);

    plot.replaceChildren();
    const root = svg('svg', { width, height, viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': panel.title }, plot);
    const scale = panel.unit === '%' ? 100 : 1;
    const { found, digits } = ticks(low * scale, high * scale);
    for (const tick of found) {
      const at = y(tick / scale);
      svg('line', { class: 'grid', x1: left, x2: width - right, y1: at, y2: at }, root);
      svg('text', { x: left - 7, y: at + 4, 'text-anchor': 'end' }, root).textContent = tick.toFixed(digits) + (panel.unit ? ' %' : '');
    }
    for (const tick of ticks(0, lastStep, 1).found)
      svg('text', { x: x(tick), y: height - 6, 'text-anchor': 'middle' }, root).textContent = tick.toLocaleString('en');
    for (const { points, colour, dash, reference } of lines) {
      const path = reference
        ? `M${left} ${y(points[0][1])}H${width - right}`
        : points.map(([step, value], i) => `${i ? 'L' : 'M'}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join('');
      svg('path', { class: `line r${colour}`, d: path, 'stroke-dasharray': dash }, root);
      if (points.length === 1 && !reference) svg('circle', { class: `dot r${colour}`, cx: x(points[0][0]), cy: y(points[0][1]), r: 3 }, root);
    }
    const cursor = svg('line', { class: 'cursor', y1: top, y2: height - bottom, visibility: 'hidden' }, root);

    function read(step) {
      const readout = figure.querySelector('.readout');
      readout.replaceChildren();
      for (const { points, name, colour, dash } of lines) {
        const nearest = points.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a));
        const entry = html('span', '');
        const sample = svg('svg', { viewBox: '0 0 22 8' }, entry);
        svg('path', { class: `line r${colour}`, d: 'M0 4H22', 'stroke-dasharray': dash }, sample);
        entry.append(`${name} ${format(nearest[1], panel.unit)}`);
        readout.append(entry, ' ');
      }
      readout.append(html('small', '', `at step ${Math.round(step).toLocaleString('en')}`));
    }
    read(lastStep);
    root.onpointermove = (event) => {
      const share = (event.clientX - root.getBoundingClientRect().left - left) / (width - left - right);
      const step = Math.min(Math.max(share, 0), 1) * lastStep;
      cursor.setAttribute('x1', x(step));
      cursor.setAttribute('x2', x(step));
      cursor.setAttribute('visibility', 'visible');
      read(step);
    };
    root.onpointerleave = () => {
      cursor.setAttribute('visibility', 'hidden');
      read(lastStep);
    };
  }

  // Maps: one point for each example. The example under the pointer is marked in all maps of the same data.

  const tip = document.getElementById('tip');
  const colour = document.getElementById('colour');

  function tile(place, index, width) {
    const { columns } = runs[place].sheet;
    const node = html('span', `tile s${place}`);
    node.style.cssText = `--w:${width}px;--c:${index % columns};--r:${Math.floor(index / columns)}`;
    return node;
  }

  function className(run, label) {
    return label < 0 ? '' : run.class_names[label] ?? String(label);
  }

  /** The colour of class number `order` among `count` classes: one of ten colours, or one of a colour wheel. */
  function classColour(order, count) {
    if (order < 0) return 'var(--faint)';
    return count <= 2 * CLASS_COLOURS ? `var(--k${order % CLASS_COLOURS})` : `hsl(${(order * 137.508) % 360} 62% 52%)`;
  }

  function rampColour(share) {
    const at = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
    const index = Math.min(Math.floor(at), RAMP.length - 2);
    const [from, to] = [RAMP[index], RAMP[index + 1]].map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
    return `rgb(${from.map((value, i) => Math.round(value + (to[i] - value) * (at - index))).join(' ')})`;
  }

  /** Circles, and triangles for the second ten classes. */
  function mark(x, y, size, triangle) {
    return triangle
      ? `M${x} ${y - 1.25 * size}L${x + 1.1 * size} ${y + 0.8 * size}H${x - 1.1 * size}Z`
      : `M${x - size} ${y}a${size} ${size} 0 1 0 ${2 * size} 0a${size} ${size} 0 1 0 ${-2 * size} 0Z`;
  }

  /** The groups that give the points of a run their colour: `group` [n], and each group's name, colour and mark. */
  function grouping(run) {
    const { labels, predictions, losses } = run.map;
    if (colour.value === 'class' && run.class_names.length) {
      const present = [...new Set(labels)].filter((label) => label >= 0).sort((a, b) => a - b);
      const groups = present.map((label, order) => ({
        name: className(run, label),
        colour: classColour(order, present.length),
        triangle: present.length <= 2 * CLASS_COLOURS && order >= CLASS_COLOURS,
      }));
      return { groups, group: labels.map((label) => present.indexOf(label)) };
    }
    if (colour.value === 'knn' && predictions) {
      const groups = [{ name: 'right', colour: 'var(--accent)' }, { name: 'wrong', colour: 'var(--wrong)', triangle: true }];
      return { groups, group: labels.map((label, i) => (label < 0 || predictions[i] < 0 ? -1 : Number(predictions[i] !== label))) };
    }
    const sorted = losses.filter((loss) => loss !== null).sort((a, b) => a - b);
    const [low, high] = [0.02, 0.98].map((share) => sorted[Math.round(share * (sorted.length - 1))] ?? 0);
    return { low, high, colours: losses.map((loss) => (loss === null ? 'var(--faint)' : rampColour((loss - low) / (high - low || 1)))) };
  }

  function drawKey(article, found) {
    const key = article.querySelector('.key');
    key.replaceChildren();
    if (!found.groups) {
      const ramp = html('span', 'ramp');
      ramp.style.background = `linear-gradient(to right, ${RAMP.join(', ')})`;
      key.append(html('span', '', `loss ${found.low.toFixed(2)} to ${found.high.toFixed(2)}`), ramp);
      return;
    }
    found.groups.forEach((group, order) => {
      const entry = html('div', '');
      const sample = svg('svg', { viewBox: '0 0 12 12' }, entry);
      svg('path', { d: mark(6, 6, 4.5, group.triangle), fill: group.colour }, sample);
      const name = html('span', '', `${group.name} (${found.group.filter((of) => of === order).length})`);
      entry.append(name);
      entry.title = group.name;
      const lit = (on) => {
        article.classList.toggle('faded', on);
        article.querySelectorAll('.point').forEach((point, i) => point.classList.toggle('lit', on && found.group[i] === order));
      };
      entry.onpointerenter = () => lit(true);
      entry.onpointerleave = () => lit(false);
      key.append(entry);
    });
  }

  function showTip(place, index, event) {
    const run = runs[place];
    const { labels, losses, predictions, near, tiles, texts } = run.map;
    const what = html('div', 'what');
    const words = html('div', '');
    if (texts) words.append(html('div', 'text', texts[index]));
    if (labels[index] >= 0) words.append(html('b', '', className(run, labels[index])));
    if (predictions && predictions[index] >= 0) words.append(html('div', '', `kNN: ${className(run, predictions[index])}`));
    if (losses[index] !== null) words.append(html('div', '', `loss ${losses[index].toFixed(2)}`));
    if (tiles) what.append(tile(place, tiles[index], 112));
    what.append(words);
    tip.replaceChildren(what);
    if (tiles) {
      const strip = html('div', 'strip');
      for (const other of near[index]) strip.append(tile(place, tiles[other], 46));
      tip.append(html('p', 'about', 'nearest of the shown images'), strip);
    }
    if (texts) {
      tip.append(html('p', 'about', 'nearest of the shown examples'));
      for (const other of near[index].slice(0, TIP_TEXTS)) tip.append(html('div', 'text near', texts[other]));
    }
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(8, Math.min(event.clientX + 16, innerWidth - box.width - 8)) + 'px';
    tip.style.top = Math.max(8, Math.min(event.clientY + 16, innerHeight - box.height - 8)) + 'px';
  }

  function markEverywhere(place, index, on) {
    const run = runs[place];
    runs.forEach((other, at) => {
      if (!other.map || other.fingerprint !== run.fingerprint) return;
      const same = other.map.ids.indexOf(run.map.ids[index]);
      document.querySelectorAll(`[data-map="${at}"] .point`)[same]?.classList.toggle('here', on);
    });
  }

  function drawMap(article) {
    const place = Number(article.dataset.map);
    const run = runs[place];
    if (!run.map) return;
    const found = grouping(run);
    const plot = article.querySelector('.plot');
    plot.replaceChildren();
    const width = plot.clientWidth;
    const side = Math.min(width, 720);
    const [size, inset] = [width > 500 ? 4 : 3, 16];
    const [spanX, spanY] = [Math.max(...run.map.x), Math.max(...run.map.y)];
    const scale = Math.min((width - 2 * inset) / (spanX || 1), (side - 2 * inset) / (spanY || 1));
    const height = Math.ceil(spanY * scale + 2 * inset);
    const root = svg('svg', { width, height, viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': 'map of the embedding' }, plot);
    const offset = (width - spanX * scale) / 2;
    run.map.x.forEach((x, i) => {
      const group = found.groups?.[found.group[i]];
      const fill = found.colours ? found.colours[i] : group?.colour ?? 'var(--faint)';
      const at = [offset + x * scale, height - inset - run.map.y[i] * scale].map((value) => Number(value.toFixed(1)));
      const point = svg('path', { class: 'point', d: mark(...at, size, group?.triangle), fill, 'data-index': i }, root);
      point.onpointerenter = (event) => {
        markEverywhere(place, i, true);
        showTip(place, i, event);
      };
      point.onpointerleave = () => {
        markEverywhere(place, i, false);
        tip.hidden = true;
      };
    });
    drawKey(article, found);
  }

  function draw() {
    document.querySelectorAll('[data-panel]').forEach(drawPanel);
    document.querySelectorAll('[data-map]').forEach(drawMap);
  }

  colour.onchange = () => document.querySelectorAll('[data-map]').forEach(drawMap);
  let drawnWidth = innerWidth;
  window.onresize = () => {
    if (innerWidth !== drawnWidth) draw();
    drawnWidth = innerWidth;
  };
  draw();
})();

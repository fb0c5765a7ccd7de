/* Figures of heads: gestures become selection actions, and the selection is drawn on a layer above each figure.
 *
 * The layer is an SVG stretched over the plot in data coordinates (`data-box`, from the figure's `Frame` in Python), so it
 * fits at any size without computing a pixel.  Plotly would redraw the whole figure for one outline: 1024 heads take it a
 * second.  Two kinds of figure have one:
 *
 * - .rs-map: a layer x head map, [data-panel, data-tower, data-layers, data-heads]; chosen cells are outlined;
 * - .rs-points: a figure whose points carry a head each in `customdata` (the written head, or a list that starts with it);
 *   chosen ones are ringed, or traced where [data-mark=lines].
 */
(function (rs) {
  const TRACE = { cells: 0, handle: 1, hatch: 2, dead: 3 }; // app/maps.py, TRACES
  rs.TRACE = TRACE;

  const plotIn = (frame) => frame && frame.querySelector('.js-plotly-plot');

  /* ---- drawing ---- */

  const PARTS = ['halo', 'outline', 'cursor'];

  const sheet = (layer) => {
    if (!layer.firstChild) {
      const paths = PARTS.map((part) => `<path class="rs-${part}"/>`).join('');
      layer.innerHTML = `<svg viewBox="0 0 1 1" preserveAspectRatio="none">${paths}</svg>`;
    }
    layer.dataset.drawn = layer.dataset.box;
    const [x0, y0, x1, y1] = layer.dataset.box.split(' ').map(Number);
    const at = (x, y) => `${((x - x0) / (x1 - x0)).toFixed(6)} ${((y - y0) / (y1 - y0)).toFixed(6)}`;
    const set = (part, d) => layer.querySelector(`.rs-${part}`).setAttribute('d', d);
    return { at, set };
  };

  const cellPath = (at, cells, inset) => {
    const r = 0.5 - inset;
    return cells.map(({ layer: l, head: h }) =>
      `M${at(h - r, l - r)}L${at(h + r, l - r)}L${at(h + r, l + r)}L${at(h - r, l + r)}Z`).join('');
  };

  let shown = { heads: [], ids: new Set(), parsed: [] }, cursor = null;
  rs.chosen = () => shown.heads;

  const paintMap = (frame) => {
    const { at, set } = sheet(frame.querySelector('.rs-layer'));
    const cells = cellPath(at, shown.parsed.filter((head) => head.tower === frame.dataset.tower), 0.03);
    set('halo', cells);
    set('outline', cells);
    const here = cursor && cursor.panel === frame.dataset.panel;
    set('cursor', here ? cellPath(at, [cursor], 0.14) : '');
  };

  const headOf = (custom) => (Array.isArray(custom) ? custom[0] : custom);

  /* Where each head is in a figure of points: {head: [[x, y], ...]}, worked out once for each figure. */
  const placesIn = (plot) => {
    if (plot.rsPlaces && plot.rsPlaces.of === plot.data) return plot.rsPlaces.heads;
    const heads = {};
    plot.data.forEach((trace) => (trace.customdata || []).forEach((custom, i) => {
      const id = headOf(custom);
      if (typeof id === 'string') (heads[id] = heads[id] || []).push([trace.x[i], trace.y[i]]);
    }));
    plot.rsPlaces = { of: plot.data, heads };
    return heads;
  };

  const paintPoints = (frame) => {
    if (!frame.querySelector('.rs-layer')) return true; // chooses, but has no place for single heads
    const plot = plotIn(frame);
    if (!plot || !plot.data) return false;
    const { at, set } = sheet(frame.querySelector('.rs-layer')), places = placesIn(plot), lines = frame.dataset.mark === 'lines';
    // a line of no length with round ends is a dot, whatever the stretch
    const draw = (points) => (lines ? 'M' + points.map(([x, y]) => at(x, y)).join('L') : points.map(([x, y]) => `M${at(x, y)}h0`).join(''));
    const path = shown.heads.filter((id) => id in places).map((id) => draw(places[id])).join('');
    set('halo', path);
    set('outline', path);
    return true;
  };

  const paint = (frame) => (frame.classList.contains('rs-map') ? (paintMap(frame), true) : paintPoints(frame));
  const paintAll = () => document.querySelectorAll('.rs-map, .rs-points').forEach(paint);

  /* Everything that shows the selection, at once. */
  rs.show = (heads, last) => {
    shown = { heads, ids: new Set(heads), parsed: heads.map(rs.parseHead) };
    paintAll();
    rs.mirrorGrids(heads, last);
    document.dispatchEvent(new CustomEvent('robosteer:selection', { detail: heads }));
  };

  /* Figures and tables that arrive, or change their box, are painted as soon as they can be. */
  let due = false;
  const paintNew = (left) => {
    const layers = [...document.querySelectorAll('.rs-layer')].filter((layer) => layer.dataset.drawn !== layer.dataset.box);
    const waiting = layers.filter((layer) => !paint(layer.closest('.rs-map, .rs-points')));
    document.dispatchEvent(new CustomEvent('robosteer:arrived'));
    due = waiting.length > 0 && left > 0;
    if (due) requestAnimationFrame(() => paintNew(left - 1));
    letScroll();
  };
  new MutationObserver(() => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => paintNew(240));
  }).observe(document.documentElement, { childList: true, subtree: true, attributes: true, attributeFilter: ['data-box'] });

  /* On a touch screen a drag scrolls the page; a tap still chooses. */
  const coarse = window.matchMedia('(pointer: coarse)');
  const letScroll = () => {
    if (!coarse.matches) return;
    [...document.querySelectorAll('.rs-map, .rs-points')].map(plotIn)
      .filter((plot) => plot && plot._fullLayout && plot._fullLayout.dragmode)
      .forEach((plot) => Plotly.relayout(plot, { dragmode: false }));
  };

  /* ---- which heads a box or a lasso holds: those whose centre is inside ---- */

  const inside = (area) => {
    if (area.range) {
      const [[x0, x1], [y0, y1]] = [area.range.x, area.range.y].map((ends) => [...ends].sort((a, b) => a - b));
      return (x, y) => x >= x0 && x <= x1 && y >= y0 && y <= y1;
    }
    const { x: xs, y: ys } = area.lassoPoints, n = xs.length;
    return (x, y) => {
      let odd = false;
      for (let i = 0, j = n - 1; i < n; j = i++)
        if (ys[i] > y !== ys[j] > y && x < ((xs[j] - xs[i]) * (y - ys[i])) / (ys[j] - ys[i]) + xs[i]) odd = !odd;
      return odd;
    };
  };

  /* ---- gestures: heard from Plotly itself; through Dash's properties, two quick clicks would be one ---- */

  /* The cell under the pointer; what Plotly hovers over may be 50 ms old, another cell for a quick hand. */
  const cellUnder = (plot, e) => {
    const { xaxis, yaxis, _size } = plot._fullLayout, box = plot.getBoundingClientRect();
    const x = Math.round(xaxis.p2d(e.clientX - box.left - _size.l)), y = Math.round(yaxis.p2d(e.clientY - box.top - _size.t));
    const row = plot.data[TRACE.cells].z[y];
    return row && typeof row[x] === 'number' ? { x, y } : null;
  };

  const clicked = (frame, plot, points, e) => {
    const { tower } = frame.dataset;
    const cell = tower && e && cellUnder(plot, e);
    const named = points.map((p) => headOf(p.customdata)).find((id) => typeof id === 'string' && rs.parseHead(id));
    const head = tower ? cell && rs.headId(tower, cell.y, cell.x) : named;
    if (head) rs.dispatch({ type: 'toggle', heads: [head] });
    const several = !tower && points.map((p) => p.customdata).find((c) => c && c.heads); // a bar that stands for a set
    if (several) rs.dispatch({ type: 'set', heads: several.heads });
  };

  const circled = (frame, plot, area) => {
    if (!area || !(area.range || area.lassoPoints)) return;
    const holds = inside(area), heads = [], { tower } = frame.dataset;
    if (tower)
      plot.data[TRACE.cells].z.forEach((row, layer) => row.forEach((z, head) => {
        if (z !== null && holds(head, layer)) heads.push(rs.headId(tower, layer, head));
      }));
    else Object.entries(placesIn(plot)).forEach(([id, points]) => points.some(([x, y]) => holds(x, y)) && heads.push(id));
    rs.dispatch({ type: 'box', heads });
    // the box has done its work; Plotly would keep it on the screen
    setTimeout(() => document.contains(plot) && Plotly.relayout(plot, { selections: [] }), 0);
  };

  document.addEventListener('pointerover', (e) => {
    const frame = e.target.closest && e.target.closest('.rs-map, .rs-points'), plot = plotIn(frame);
    if (!plot || !plot.on || plot.rsHeard === plot._ev) return;
    plot.rsHeard = plot._ev; // a figure that Plotly makes anew in the same place hears nobody
    plot.on('plotly_click', (data) => clicked(frame, plot, data.points, data.event));
    plot.on('plotly_selected', (area) => circled(frame, plot, area));
  }, true);

  /* ---- keys: arrows walk the cells, Enter or Space chooses, Escape leaves ---- */

  const STEP = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

  /* What a screen reader hears of the cursor's cell; the hover label shows the same to the eye. */
  const say = (frame) => {
    const says = document.getElementById('cursor-says');
    if (!cursor) return void (says.innerText = '');
    const { tower, layer, head } = cursor, plot = plotIn(frame), cells = plot && plot.data[TRACE.cells];
    const z = cells && cells.z[layer] ? cells.z[layer][head] : null, id = rs.headId(tower, layer, head);
    if (plot) Plotly.Fx.hover(plot, z === null ? [] : [{ curveNumber: TRACE.cells, pointNumber: [layer, head] }]);
    const where = `${tower} layer ${layer} head ${head}`;
    if (z === null || z === undefined) return void (says.innerText = `${where}: dead or without a score`);
    const [, , rank, score] = cells.customdata[layer][head];
    says.innerText = `${where}: score ${score}, rank ${rank}${shown.ids.has(id) ? ', selected' : ''}`;
  };

  const place = (frame, to) => {
    cursor = to;
    document.querySelectorAll('.rs-map').forEach(paintMap);
    say(frame);
  };
  document.addEventListener('robosteer:selection', () => {
    const frame = cursor && document.querySelector(`.rs-map[data-panel="${CSS.escape(cursor.panel)}"]`);
    if (frame) say(frame);
  });

  document.addEventListener('keydown', (e) => {
    const frame = e.target.classList && e.target.classList.contains('rs-map') && e.target;
    if (!frame || e.ctrlKey || e.metaKey || e.altKey) return;
    const { panel, tower, layers, heads } = frame.dataset;
    const here = cursor && cursor.panel === panel ? cursor : null;
    if (e.key in STEP) {
      const [dl, dh] = here ? STEP[e.key] : [0, 0];
      const clamp = (v, n) => Math.min(Math.max(v, 0), n - 1);
      const from = here || { layer: 0, head: 0 };
      place(frame, { panel, tower, layer: clamp(from.layer + dl, +layers), head: clamp(from.head + dh, +heads) });
    } else if ((e.key === 'Enter' || e.key === ' ') && here) {
      const z = plotIn(frame).data[TRACE.cells].z[here.layer][here.head];
      if (z !== null) rs.dispatch({ type: 'toggle', heads: [rs.headId(tower, here.layer, here.head)] });
    } else if (e.key === 'Escape' && here) {
      place(frame, null);
    } else return;
    e.preventDefault();
  });

  document.addEventListener('focusout', (e) => {
    if (!cursor || !e.target.classList || !e.target.classList.contains('rs-map')) return;
    const plot = plotIn(e.target);
    if (plot && window.Plotly) Plotly.Fx.unhover(plot);
    place(e.target, null);
  });
})(window.robosteer);

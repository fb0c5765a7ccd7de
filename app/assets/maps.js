/* Figures of heads: gestures become selection actions, and the selection is drawn on a layer above each figure.
 *
 * The layer is an SVG stretched over the plot in data coordinates (`data-box`, from app/maps.py), so it fits at any size
 * without computing a pixel.  Plotly would redraw the whole figure for one outline: 1024 heads take it a second.
 */
(function (rs) {
  const TRACE = { cells: 0, handle: 1, hatch: 2, dead: 3 }; // app/maps.py, TRACES
  rs.TRACE = TRACE;

  const plotIn = (frame) => frame && frame.querySelector('.js-plotly-plot');
  const frameOf = (panel) => document.querySelector(`.rs-map[data-panel="${CSS.escape(panel)}"]`);

  /* ---- drawing ---- */

  const PARTS = ['halo', 'outline', 'cursor'];

  const sheet = (layer) => {
    if (!layer.firstChild) {
      const paths = PARTS.map((part) => `<path class="rs-${part}"/>`).join('');
      layer.innerHTML = `<svg viewBox="0 0 1 1" preserveAspectRatio="none">${paths}</svg>`;
    }
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

  let shown = { heads: [], cursor: null, rows: [] };

  const paint = () => {
    const chosen = shown.heads.map(rs.parseHead), ids = new Set(shown.heads);
    document.querySelectorAll('.rs-map').forEach((frame) => {
      const { at, set } = sheet(frame.querySelector('.rs-layer'));
      const cells = cellPath(at, chosen.filter((head) => head.tower === frame.dataset.tower), 0.03);
      set('halo', cells);
      set('outline', cells);
      const here = shown.cursor && shown.cursor.panel === frame.dataset.panel;
      set('cursor', here ? cellPath(at, [shown.cursor], 0.14) : '');
    });
    const ranked = document.querySelector('.rs-ranked-plot .rs-layer');
    if (ranked) {
      const { at, set } = sheet(ranked);
      // a line of no length with round ends is a dot, whatever the stretch
      const dots = shown.rows.filter((row) => ids.has(row.id)).map((row) => `M${at(row.rank, row.score)}h0`).join('');
      set('halo', dots);
      set('outline', dots);
    }
  };

  /* On a touch screen a drag scrolls the page; a tap still chooses. */
  const letScroll = (left) => {
    if (!window.matchMedia('(pointer: coarse)').matches || !left) return;
    const plots = [...document.querySelectorAll('.rs-map, .rs-ranked-plot')].map(plotIn);
    if (!plots.every((plot) => plot && plot._fullLayout)) setTimeout(letScroll, 100, left - 1);
    else plots.filter((plot) => plot._fullLayout.dragmode).forEach((plot) => Plotly.relayout(plot, { dragmode: false }));
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

  const clicked = (frame, points) => {
    const { tower } = frame.dataset;
    const cell = points.find((p) => p.curveNumber === TRACE.cells && typeof p.z === 'number');
    const named = points.map((p) => p.customdata).find((id) => typeof id === 'string'); // of the ranked scores
    const head = tower ? cell && rs.headId(tower, cell.y, cell.x) : named;
    if (head) rs.dispatch({ type: 'toggle', heads: [head] });
  };

  const circled = (frame, plot, area) => {
    if (!area || !(area.range || area.lassoPoints)) return;
    const holds = inside(area), heads = [], { tower } = frame.dataset;
    if (tower)
      plot.data[TRACE.cells].z.forEach((row, layer) => row.forEach((z, head) => {
        if (z !== null && holds(head, layer)) heads.push(rs.headId(tower, layer, head));
      }));
    else heads.push(...shown.rows.filter((row) => holds(row.rank, row.score)).map((row) => row.id));
    rs.dispatch({ type: 'box', heads });
    // the box has done its work; Plotly would keep it on the screen
    setTimeout(() => document.contains(plot) && Plotly.relayout(plot, { selections: [] }), 0);
  };

  document.addEventListener('pointerover', (e) => {
    const frame = e.target.closest && e.target.closest('.rs-map, .rs-ranked-plot'), plot = plotIn(frame);
    if (!plot || !plot.on || plot.rsHeard) return;
    plot.rsHeard = true;
    plot.on('plotly_click', (data) => clicked(frame, data.points));
    plot.on('plotly_selected', (area) => circled(frame, plot, area));
  }, true);

  Object.assign(window.dash_clientside.robosteer, {
    /* The frames of a view that has just arrived may not be in the document yet: then a moment later. */
    paint(state, cursor, rows, ids, meta) {
      if (state && state.run !== meta.run) throw dash_clientside.PreventUpdate; // this page is about to go
      shown = { heads: state ? state.heads : [], cursor, rows: rows || [] };
      const ready = () => ids.every((id) => frameOf(id.panel)) && document.querySelector('.rs-ranked-plot .rs-layer');
      const attempt = (left) => (ready() || !left ? paint() : requestAnimationFrame(() => attempt(left - 1)));
      attempt(60);
      letScroll(50);
      return shown.heads.length;
    },

    dressMaps(scheme, themes, ids) {
      return ids.map(() => {
        const patch = new dash_clientside.Patch(), { template, worst_to_best: ramp, hatch } = themes[scheme];
        patch.assign(['layout', 'template'], template);
        patch.assign(['layout', 'coloraxis', 'colorscale'], ramp.map((c, i) => [i / (ramp.length - 1), c]));
        patch.assign(['data', TRACE.hatch, 'line', 'color'], hatch);
        return patch.build();
      });
    },

    dressRanked(scheme, themes, figure) {
      return rs.dressedRanked(figure, themes[scheme]);
    },

    /* What a screen reader hears of the cursor's cell; the hover label shows the same to the eye. */
    sayCursor(cursor, state, rows) {
      if (!cursor) return '';
      const id = rs.headId(cursor.tower, cursor.layer, cursor.head);
      const row = (rows || []).find((r) => r.id === id);
      const plot = plotIn(frameOf(cursor.panel));
      if (plot && window.Plotly) Plotly.Fx.hover(plot, row ? [{ curveNumber: TRACE.cells, pointNumber: [cursor.layer, cursor.head] }] : []);
      const where = `${cursor.tower} layer ${cursor.layer} head ${cursor.head}`;
      if (!row) return `${where}: dead or without a score`;
      const chosen = state && state.heads.includes(id) ? ', selected' : '';
      return `${where}: score ${row.score}, rank ${row.rank}${chosen}`;
    },
  });

  /* Ranked scores in the colours of a scheme. */
  rs.dressedRanked = (figure, theme) => {
    const colour = (i) => theme.arms[1 + (Math.floor(i / 2) % (theme.arms.length - 1))];
    const data = figure.data.map((trace, i) => (i % 2 === 0
      ? { ...trace, fillcolor: colour(i) + '29' }
      : { ...trace, marker: { ...trace.marker, color: colour(i) }, line: { ...trace.line, color: colour(i) } }));
    const shapes = (figure.layout.shapes || []).map((s) => ({ ...s, line: { ...s.line, color: theme.arms[0] } }));
    return { data, layout: { ...figure.layout, template: theme.template, shapes } };
  };

  /* ---- keys: arrows walk the cells, Enter or Space chooses, Escape leaves ---- */

  const STEP = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  let cursor = null;
  const place = (to) => dash_clientside.set_props('cursor', { data: (cursor = to) });

  document.addEventListener('keydown', (e) => {
    const frame = e.target.classList && e.target.classList.contains('rs-map') && e.target;
    if (!frame) return;
    const { panel, tower, layers, heads } = frame.dataset;
    const here = cursor && cursor.panel === panel ? cursor : null;
    if (e.key in STEP) {
      const [dl, dh] = here ? STEP[e.key] : [0, 0];
      const clamp = (v, n) => Math.min(Math.max(v, 0), n - 1);
      const from = here || { layer: 0, head: 0 };
      place({ panel, tower, layer: clamp(from.layer + dl, +layers), head: clamp(from.head + dh, +heads) });
    } else if ((e.key === 'Enter' || e.key === ' ') && here) {
      rs.dispatch({ type: 'toggle', heads: [rs.headId(tower, here.layer, here.head)] });
    } else if (e.key === 'Escape' && here) {
      place(null);
    } else return;
    e.preventDefault();
  });

  document.addEventListener('focusout', (e) => {
    if (!cursor || !e.target.classList || !e.target.classList.contains('rs-map')) return;
    const plot = plotIn(e.target);
    if (plot && window.Plotly) Plotly.Fx.unhover(plot);
    place(null);
  });
})(window.robosteer);

/* Tables of heads (AG Grid): further views of the selection, and cells that draw.
 *
 * A grid tells who changed its selection; only a person's change is dispatched, so that grid and store cannot answer
 * each other for ever.  The other way the grid is told what differs, row by row: giving it the whole set again takes it
 * a hundred times as long.
 */
(function (rs) {
  const BY_CODE = new Set(['api', 'apiSelectAll', 'apiSelectAllFiltered', 'rowDataChanged', 'gridInitializing']);
  const grids = new Map(), met = new WeakSet(); // id of a grid on the page -> its api; apis that were seen

  const mirror = (api, heads, last) => {
    const wanted = new Set(heads), on = [], off = [];
    api.forEachNode((node) => {
      if (wanted.has(node.id) !== Boolean(node.isSelected())) (wanted.has(node.id) ? on : off).push(node);
    });
    if (off.length) api.setNodesSelected({ nodes: off, newValue: false, source: 'api' });
    if (on.length) api.setNodesSelected({ nodes: on, newValue: true, source: 'api' });
    if (last) reveal(api, last);
  };

  /* The table scrolls to a head that was chosen elsewhere, once the choice is painted: new rows take longer than all else. */
  let scroll = null;
  const reveal = (api, id) => {
    clearTimeout(scroll);
    scroll = setTimeout(() => {
      const node = !api.isDestroyed() && rs.chosen().includes(id) && api.getRowNode(id);
      if (node && node.displayed) api.ensureNodeVisible(node, null);
    }, 120);
  };

  /* Dash's own listener has no api until the grid is drawn a second time, and fails on a selection before that. */
  const welcome = (id, api) => {
    if (api.isDestroyed()) return;
    grids.set(id, api);
    // while the grid is being set up its own code takes back what others have selected
    api.addEventListener('selectionChanged', (e) => BY_CODE.has(e.source) && setTimeout(() => api.isDestroyed() || mirror(api, rs.chosen(), null), 0));
    mirror(api, rs.chosen(), null);
  };

  /* A grid that has just been made shows the selection too.  Its own first events come before anybody can listen, and
   * how long it takes to have rows nobody says: look again until it has. */
  let again = null;
  const meet = () => {
    let awaited = false;
    document.querySelectorAll('.rs-head-grid[id]').forEach(({ id }) => {
      let api = null;
      try { api = dash_ag_grid.getApi(id); } catch { /* not there yet */ }
      if (api && met.has(api)) return;
      if (!api || !api.getDisplayedRowCount()) { awaited = true; return; }
      met.add(api);
      setTimeout(() => welcome(id, api), 100);
    });
    clearTimeout(again);
    if (awaited) again = setTimeout(meet, 250);
  };

  rs.mirrorGrids = (heads, last) => {
    meet();
    for (const [id, api] of grids) if (document.getElementById(id)) mirror(api, heads, last);
  };

  document.addEventListener('robosteer:arrived', meet);

  const functions = window.dashAgGridFunctions;
  functions.headsShown = ({ api }) => { if ([...grids.values()].includes(api)) mirror(api, rs.chosen(), null); };
  functions.headsChosen = (params) => {
    if (BY_CODE.has(params.source)) return;
    const scope = [], heads = [];
    params.api.forEachNode((node) => {
      scope.push(node.id);
      if (node.isSelected()) heads.push(node.id);
    });
    rs.dispatch({ type: 'within', scope, heads });
  };
  functions.short = (value) => rs.short(value);
  const ENDS = ['score', 'low', 'high']; // a row's fields, unless the column names its own
  const interval = (data, at = ENDS) => {
    const [, low, high] = at.map((name) => data && data[name]);
    return low === null || low === undefined ? '' : `95 %: ${rs.short(low)} to ${rs.short(high)}`;
  };
  functions.interval = ({ data, colDef }) => interval(data, colDef.cellRendererParams.at);

  /* Three significant digits, so that a column of like numbers lines up. */
  rs.short = (value) => {
    if (value === null || value === undefined) return '–';
    const size = Math.abs(value);
    if (size === 0) return '0';
    return size < 1e-3 || size >= 1e5 ? value.toExponential(2) : value.toPrecision(size >= 1000 ? 5 : 3);
  };

  /* ---- cells that draw ---- */

  const within = (scale, width) => {
    const span = scale.high - scale.low || 1;
    return (v) => 4 + (width - 8) * Math.min(1, Math.max(0, (v - scale.low) / span));
  };
  const line = (key, x1, x2, y1, y2, className) => React.createElement('line', { key, x1, x2, y1, y2, className });

  /* A dot with its interval on the scale of the column; the dashed line is chance.  `at` names the row's fields. */
  window.dashAgGridComponentFunctions.Interval = (props) => {
    const { data, scale, at = ENDS } = props, width = 90, mid = 11, parts = [];
    const [score, low, high] = at.map((name) => data && data[name]);
    if (score === null || score === undefined || !scale) return null;
    const x = within(scale, width), chance = (scale.chance || {})[data.tower];
    if (chance !== undefined && chance !== null && chance >= scale.low && chance <= scale.high)
      parts.push(line('c', x(chance), x(chance), 2, 20, 'rs-glyph-chance'));
    if (low !== null && low !== undefined) parts.push(line('i', x(low), x(high), mid, mid, 'rs-glyph-interval'));
    parts.push(React.createElement('circle', { key: 'd', cx: x(score), cy: mid, r: 3.2, className: 'rs-glyph-dot' }));
    const said = interval(data, at);
    const heard = said ? { role: 'img', 'aria-label': said } : { 'aria-hidden': true };
    return React.createElement('svg', { width, height: 22, className: 'rs-glyph', ...heard }, parts);
  };

  /* The factor profile: a bar a factor, all on one scale from zero or chance. */
  window.dashAgGridComponentFunctions.Profile = (props) => {
    const { data, scale, fields } = props, height = 20, step = 17;
    if (!data || fields.every((name) => data[name] === null || data[name] === undefined)) return null;
    const top = Math.max(scale.high, 0), bottom = Math.min(scale.low, 0), span = top - bottom || 1;
    const y = (v) => 1 + (height - 2) * (1 - (v - bottom) / span), zero = y(0);
    const bars = fields.map((name, i) => {
      const v = data[name];
      if (v === null || v === undefined) return null;
      const at = y(v);
      return React.createElement('rect', {
        key: name, x: 2 + i * step, y: Math.min(at, zero), width: step - 4, height: Math.max(1, Math.abs(zero - at)), className: `rs-bar-${i % 3}`,
      });
    });
    bars.push(line('z', 0, fields.length * step, zero, zero, 'rs-glyph-zero'));
    return React.createElement('svg', { width: fields.length * step, height: 22, className: 'rs-glyph', 'aria-hidden': true }, bars);
  };
})(window.robosteer);

/* The table of heads (AG Grid): a second view of the selection, and cells that draw.
 *
 * The grid tells who changed its selection; only a person's change is dispatched, so the grid and the store cannot
 * answer each other for ever.
 */
window.dashAgGridFunctions = window.dashAgGridFunctions || {};
window.dashAgGridComponentFunctions = window.dashAgGridComponentFunctions || {};

(function (rs) {
  const BY_CODE = new Set(['api', 'apiSelectAll', 'apiSelectAllFiltered', 'rowDataChanged', 'gridInitializing']);

  const reveal = (head) => {
    const api = dash_ag_grid.getApi('heads'), node = api && api.getRowNode(head);
    if (node && node.displayed) api.ensureNodeVisible(node, null);
  };

  const functions = window.dashAgGridFunctions;
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

  /* Three significant digits, so that a column of like numbers lines up. */
  rs.short = (value) => {
    if (value === null || value === undefined) return '–';
    const size = Math.abs(value);
    if (size === 0) return '0';
    return size < 1e-3 || size >= 1e5 ? value.toExponential(2) : value.toPrecision(size >= 1000 ? 5 : 3);
  };

  /* A dot with its interval on the scale of the column; the dashed line is chance. */
  window.dashAgGridComponentFunctions.Interval = (props) => {
    const e = React.createElement, { data, scale } = props, width = 90, mid = 11;
    if (!data || data.score === null || !scale) return null;
    const span = scale.high - scale.low || 1;
    const x = (v) => 4 + (width - 8) * Math.min(1, Math.max(0, (v - scale.low) / span));
    const chance = (scale.chance || {})[data.tower], parts = [];
    if (chance !== undefined && chance !== null && chance >= scale.low && chance <= scale.high)
      parts.push(e('line', { key: 'c', x1: x(chance), x2: x(chance), y1: 2, y2: 20, className: 'rs-glyph-chance' }));
    if (data.low !== null && data.high !== null)
      parts.push(e('line', { key: 'i', x1: x(data.low), x2: x(data.high), y1: mid, y2: mid, className: 'rs-glyph-interval' }));
    parts.push(e('circle', { key: 'd', cx: x(data.score), cy: mid, r: 3.2, className: 'rs-glyph-dot' }));
    return e('svg', { width, height: 22, className: 'rs-glyph', 'aria-hidden': true }, parts);
  };

  Object.assign(window.dash_clientside.robosteer, {
    /* The selection as the table, the counter and the chips show it. */
    mirror(state, rows, meta) {
      if (state && state.run !== meta.run) throw dash_clientside.PreventUpdate; // this page is about to go
      const heads = state ? state.heads : [], n = heads.length;
      if (state && state.last && window.dash_ag_grid) setTimeout(reveal, 0, state.last);
      const shown = new Set((rows || []).map((row) => row.id));
      return [
        { ids: heads.filter((id) => shown.has(id)) },
        n === 1 ? '1 head selected' : `${n} heads selected`,
        n ? heads.join('  ') : 'Click a cell, draw a box, tick rows, or take the best k.',
        n ? 'rs-chips' : 'rs-chips none',
        n === 0, !(state && state.past.length), n === 0, n === 0, // clear, undo, save, download
      ];
    },

    /* The table's rows come best first. */
    best(clicks, k, rows) {
      if (clicks) rs.dispatch({ type: 'set', heads: rows.slice(0, Math.max(0, k || 0)).map((row) => row.id) });
    },
    clear: (clicks) => { if (clicks) rs.dispatch({ type: 'clear' }); },
    undo: (clicks) => { if (clicks) rs.dispatch({ type: 'undo' }); },
    load(name, saved) {
      if (name && saved && saved[name]) rs.dispatch({ type: 'set', heads: saved[name] });
      return null; // so that the same set can be loaded again
    },
    saveLabel: (name, saved) => (name && saved && saved[name.trim()] ? 'Replace' : 'Save'),
  });
})(window.robosteer);

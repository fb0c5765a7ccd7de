/* The Heads page: looking at one head, finding rows, and what its table exports. */
(function (rs) {
  const GRID = 'heads-table';
  let looked = null, only = false, files = [];
  const api = () => { try { return dash_ag_grid.getApi(GRID); } catch { return null; } };

  const functions = window.dashAgGridFunctions;
  functions.onlyChosen = () => only;
  functions.isChosen = (params) => rs.chosen().includes((params.node || params).id);
  functions.isLooked = (params) => Boolean(params.data) && params.data.id === looked;
  functions.headLooked = (params) => {
    if (params.event && params.event.key && params.event.key !== 'Enter') return;
    if (params.column && params.column.getColId() === 'ag-Grid-SelectionColumn') return;
    if (params.data) rs.wish({ head: params.data.id });
  };

  const label = () => {
    const button = document.getElementById('drawer-toggle'), text = button && button.querySelector('.mantine-Button-label');
    const wanted = rs.chosen().includes(looked) ? 'Deselect' : 'Select';
    if (text && text.textContent !== wanted) text.textContent = wanted; // an observer hears even the same text again
  };
  document.addEventListener('robosteer:selection', () => {
    if (!document.getElementById(GRID)) return;
    label();
    if (only && api()) api().onFilterChanged();
  });
  new MutationObserver(() => document.getElementById('drawer-toggle') && label())
    .observe(document.documentElement, { childList: true, subtree: true });

  rs.exports[GRID] = () => {
    const chosen = new Set(rs.chosen());
    const rows = () => rs.gridRows(GRID).map((row) => {
      const out = { head: row.id, tower: row.tower, layer: row.layer, index: row.head, selected: chosen.has(row.id) };
      for (const { at, file } of files)
        for (const [key, name] of [['s', 'score'], ['r', 'rank'], ['l', 'low'], ['h', 'high']]) out[`${file} ${name}`] = row[key + at];
      return out;
    });
    return { name: 'heads', meta: { files: Object.fromEntries(files.map((f) => [f.file, f.label])) }, rows };
  };

  Object.assign(window.dash_clientside.robosteer, {
    look(view, now) {
      const wanted = view && view.head;
      if (!wanted || wanted === now) return dash_clientside.no_update;
      return wanted;
    },
    describedHeads(columns, head) {
      const before = looked, grid = api();
      files = columns;
      looked = head;
      if (grid) grid.redrawRows({ rowNodes: [before, head].map((id) => id && grid.getRowNode(id)).filter(Boolean) });
      return head;
    },
    findHeads(text, checked) {
      only = Boolean(checked);
      const grid = api();
      if (!grid) return;
      grid.setGridOption('quickFilterText', (text || '').trim());
      grid.onFilterChanged();
    },
    toggleLooked: (clicks, head) => { if (clicks && head) rs.dispatch({ type: 'toggle', heads: [head] }); },
  });
})(window.robosteer);

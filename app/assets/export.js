/* What is shown can be taken away: figures as PNG and SVG, the numbers behind them as CSV and JSON.
 *
 * All of it is made in the browser from what the browser shows.  Exported figures are always drawn in the light scheme
 * and with a title: they go into papers.  A menu (`widgets.export_menu(source)`) names its source, and that is
 *
 * - a Plotly figure: the element with that id holds it.  `layout.meta` may carry {title, name, rows}; without rows, the
 *   points of its traces are the numbers;
 * - a table: the AG Grid with that id;
 * - or anything else, registered by the page:
 *     robosteer.exports[source] = () => ({ name, title, meta, rows, figure: () => ({data, layout, width, height}) })
 *   with `canvas: element` in place of `figure` for what is drawn by hand, and neither where there are only numbers.
 */
(function (rs) {
  rs.exports = {};

  const save = (name, blob) => {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  rs.download = (name, text, type) => save(name, new Blob([text], { type }));

  const quoted = (v) => {
    if (v === null || v === undefined) return '';
    const text = String(v);
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  rs.csv = (rows) => {
    const keys = [...new Set(rows.flatMap((row) => Object.keys(row)))];
    return [keys, ...rows.map((row) => keys.map((k) => row[k]))].map((line) => line.map(quoted).join(',')).join('\n') + '\n';
  };

  /* ---- a figure in the colours of a scheme ---- */

  /* "arms.2" -> the third colour of the arms; "arms.2/29" -> the same, as transparent as hexadecimal 29; "ramp" -> scale. */
  const colour = (token, theme) => {
    const [path, alpha] = token.split('/');
    const found = path.split('.').reduce((at, key) => at[key], theme);
    return Array.isArray(found) ? found.map((c, i) => [i / (found.length - 1), c]) : found + (alpha || '');
  };

  const put = (at, [key, ...rest], value) => {
    if (!rest.length) return Array.isArray(at) ? at.map((v, i) => (i === key ? value : v)) : { ...at, [key]: value };
    const inner = put((at && at[key]) || {}, rest, value);
    return Array.isArray(at) ? at.map((v, i) => (i === key ? inner : v)) : { ...at, [key]: inner };
  };

  /* `layout.meta.paint` lists what the template does not reach: [[path, token], ...]. */
  rs.dressed = ({ data, layout }, theme) => {
    let figure = { data, layout: { ...layout, template: theme.template } };
    for (const [path, token] of (layout.meta && layout.meta.paint) || []) figure = put(figure, path, colour(token, theme));
    return figure;
  };

  rs.dress = (plot, theme) => {
    const { data, layout } = rs.dressed(plot, theme);
    return Plotly.react(plot, data, layout);
  };

  /* ---- the numbers of a figure that does not name them ---- */

  const listed = (v) => (ArrayBuffer.isView(v) ? [...v] : Array.isArray(v) ? v : v && v._inputArray ? [...v._inputArray] : []);
  rs.traceRows = (plot) => plot.data.filter((trace) => trace.hoverinfo !== 'skip').flatMap((trace, i) => {
    const name = { trace: trace.name || `trace ${i + 1}` }, x = listed(trace.x), y = listed(trace.y);
    if (trace.z) return listed(trace.z).flatMap((row, j) => listed(row).map((z, k) => ({ ...name, x: x[k] ?? k, y: y[j] ?? j, z })));
    const errors = (e) => (e && e.array ? { low: (k) => e.arrayminus[k], high: (k) => e.array[k] } : null);
    const ex = errors(trace.error_x), ey = errors(trace.error_y);
    return x.map((_, k) => ({
      ...name, x: x[k], y: y[k],
      ...(ex ? { x_low: x[k] - ex.low(k), x_high: x[k] + ex.high(k) } : {}),
      ...(ey ? { y_low: y[k] - ey.low(k), y_high: y[k] + ey.high(k) } : {}),
    }));
  });

  rs.gridRows = (id) => {
    const rows = [];
    dash_ag_grid.getApi(id).forEachNodeAfterFilterAndSort((node) => rows.push(node.data));
    return rows;
  };

  /* A figure that is on the page, dressed for paper, with a title. */
  rs.onPaper = (plot, title, theme) => {
    const { data, layout } = rs.dressed(plot, theme), width = Math.max(600, Math.min(1200, plot.clientWidth));
    const margin = { ...layout.margin, t: ((layout.margin && layout.margin.t) || 0) + 48 };
    const heading = { text: title, x: 0, xref: 'container', xanchor: 'left', pad: { l: 16 }, y: 1, yanchor: 'top', yref: 'container', font: { size: 14 } };
    heading.pad.t = 14;
    return { data, layout: { ...layout, autosize: false, title: heading, margin }, width, height: plot.clientHeight + 48 };
  };

  const fromPlot = (source, theme) => {
    const holder = document.getElementById(source), plot = holder && holder.querySelector('.js-plotly-plot');
    if (!plot && holder && holder.querySelector('.ag-root')) return { name: source, meta: {}, rows: rs.gridRows(source) };
    if (!plot) throw new Error(`nothing to export: ${source} holds no figure and no table, and is not registered`);
    const { title = source, name = source, rows } = plot.layout.meta || {};
    return { name, title, meta: { title }, rows: rows || rs.traceRows(plot), figure: () => rs.onPaper(plot, title, theme) };
  };

  const pictureOfCanvas = async (canvas, what, name) => {
    const png = await new Promise((done) => canvas.toBlob(done, 'image/png'));
    if (what === 'png') return save(`${name}.png`, png);
    const { width, height } = canvas;
    const image = `<image width="${width}" height="${height}" href="${canvas.toDataURL('image/png')}"/>`;
    const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">${image}</svg>`;
    return rs.download(`${name}.svg`, svg + '\n', 'image/svg+xml');
  };

  const take = (what, run, found) => {
    const name = [run, found.name].filter(Boolean).join('-'), rows = typeof found.rows === 'function' ? found.rows() : found.rows;
    if (what === 'csv') return rs.download(`${name}.csv`, rs.csv(rows), 'text/csv');
    if (what === 'json')
      return rs.download(`${name}.json`, JSON.stringify({ run, ...found.meta, rows }, null, 1) + '\n', 'application/json');
    if (found.canvas) return pictureOfCanvas(found.canvas, what, name);
    const { data, layout, width, height } = found.figure();
    return Plotly.downloadImage({ data, layout }, { format: what, width, height, scale: what === 'png' ? 2 : 1, filename: name });
  };

  /* One menu at a time; it closes by a choice, a click elsewhere, or Escape. */
  const close = (but) => document.querySelectorAll('.rs-menu[open]').forEach((menu) => menu !== but && (menu.open = false));
  document.addEventListener('click', (e) => {
    const menu = e.target.closest && e.target.closest('.rs-menu');
    close(menu && !e.target.closest('.rs-menu-list') ? menu : null);
  });
  document.addEventListener('keydown', (e) => {
    const open = e.key === 'Escape' && document.querySelector('.rs-menu[open]');
    if (!open) return;
    open.querySelector('summary').focus();
    close(null);
  });

  Object.assign(window.dash_clientside.robosteer, {
    exported(clicks, run, themes) {
      const id = dash_clientside.callback_context.triggered_id;
      if (!id || !clicks.some(Boolean)) return;
      const registered = rs.exports[id.source];
      take(id.what, run, registered ? registered(themes.light) : fromPlot(id.source, themes.light));
    },

    /* The scheme has changed: every figure on the page follows, without asking the server. */
    dressAll(scheme, themes) {
      if (!scheme || !window.Plotly) return;
      document.querySelectorAll('.js-plotly-plot').forEach((plot) => plot.layout && rs.dress(plot, themes[scheme]));
    },
  });
})(window.robosteer);

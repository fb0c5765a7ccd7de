/* What is shown can be taken away: figures as PNG and SVG, the numbers behind them as CSV and JSON.
 *
 * All of it is made in the browser from what the browser shows.  Exported figures are always drawn in the light
 * scheme, with their colour bar and title: they go into papers.
 */
(function (rs) {
  rs.download = (name, text, type) => {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  const quoted = (v) => {
    if (v === null || v === undefined) return '';
    const text = String(v);
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  rs.csv = (rows) => {
    const keys = [...new Set(rows.flatMap((row) => Object.keys(row)))];
    return [keys, ...rows.map((row) => keys.map((k) => row[k]))].map((line) => line.map(quoted).join(',')).join('\n') + '\n';
  };

  /* Outlines of cells as one broken line. */
  const outlines = (cells) => {
    const r = 0.47, x = [], y = [];
    for (const { layer, head } of cells) {
      x.push(head - r, head + r, head + r, head - r, head - r, null);
      y.push(layer - r, layer - r, layer + r, layer + r, layer - r, null);
    }
    return { x, y, type: 'scatter', mode: 'lines', hoverinfo: 'skip', showlegend: false };
  };

  /* The maps of a page side by side in one figure, widths in proportion to their heads, one colour bar. */
  const sideBySide = (frames, heads, theme, meta) => {
    const maps = frames.map((frame) => {
      const plot = frame.querySelector('.js-plotly-plot'), z = plot.data[rs.TRACE.cells].z;
      const chosen = heads.map(rs.parseHead).filter((head) => head.tower === frame.dataset.tower);
      return { plot, chosen, title: plot.layout.meta.title, layers: z.length, width: z[0].length };
    });
    const total = maps.reduce((n, map) => n + map.width, 0), gap = 0.06, free = 1 - gap * (maps.length - 1);
    const tallest = Math.max(...maps.map((map) => map.layers)), ramp = theme.worst_to_best;
    const layout = {
      template: theme.template, annotations: [], showlegend: false, margin: { l: 56, r: 110, t: 64, b: 48 },
      coloraxis: {
        ...maps[0].plot.layout.coloraxis, showscale: true,
        colorscale: ramp.map((c, i) => [i / (ramp.length - 1), c]),
        colorbar: { title: { text: meta.scale, side: 'right', font: { size: 12 } }, thickness: 14, outlinewidth: 0 },
      },
    };
    const data = [];
    let left = 0;
    maps.forEach(({ plot, chosen, title, layers, width }, i) => {
      const n = i ? i + 1 : '', right = left + (free * width) / total, axes = { xaxis: 'x' + n, yaxis: 'y' + n };
      data.push(
        { ...plot.data[rs.TRACE.cells], ...axes },
        { ...plot.data[rs.TRACE.hatch], ...axes, line: { width: 1, color: theme.hatch } },
        { ...outlines(chosen), ...axes, line: { width: 5, color: theme.halo } },
        { ...outlines(chosen), ...axes, line: { width: 2.5, color: theme.selected } },
      );
      layout['xaxis' + n] = { ...plot.layout.xaxis, domain: [left, right], anchor: 'y' + n };
      layout['yaxis' + n] = { ...plot.layout.yaxis, domain: [1 - layers / tallest, 1], anchor: 'x' + n };
      layout.annotations.push({
        text: `<b>${title}</b>`, x: left, y: 1, yshift: 18, xref: 'paper', yref: 'paper', xanchor: 'left', showarrow: false,
      });
      left = right + gap;
    });
    const clamp = (v, low, high) => Math.max(low, Math.min(high, v));
    return { data, layout, width: 170 + clamp(total * 34, 420, 1500), height: 130 + clamp(tallest * 24, 180, 900) };
  };

  /* A figure that is on the page, dressed for paper, with a title. */
  const single = (plot, { data, layout }, title, width) => ({
    data,
    layout: {
      ...layout, autosize: false, title: { text: title, x: 0, xref: 'paper', font: { size: 14 } },
      margin: { ...layout.margin, t: 56 },
    },
    width,
    height: plot.clientHeight + 48,
  });

  const take = (what, name, figure, rows, meta) => {
    if (what === 'csv') return rs.download(`${name}.csv`, rs.csv(rows), 'text/csv');
    if (what === 'json')
      return rs.download(`${name}.json`, JSON.stringify({ ...meta, rows }, null, 1) + '\n', 'application/json');
    const { data, layout, width, height } = figure();
    return Plotly.downloadImage({ data, layout }, { format: what, width, height, scale: what === 'png' ? 2 : 1, filename: name });
  };

  const pressed = (clicks) => {
    const id = dash_clientside.callback_context.triggered_id;
    return id && clicks.some(Boolean) ? id : null;
  };

  Object.assign(window.dash_clientside.robosteer, {
    exportHeads(clicks, rows, meta, state, themes) {
      const id = pressed(clicks);
      if (!id) return;
      const chosen = new Set(state ? state.heads : []);
      const all = rows.map((row) => ({ ...row, selected: chosen.has(row.id) }));
      const name = [meta.run, meta.file, id.source].join('-');
      const figure = () => {
        if (id.source === 'maps')
          return sideBySide([...document.querySelectorAll('.rs-map')], [...chosen], themes.light, meta);
        const plot = document.querySelector('#ranked .js-plotly-plot');
        return single(plot, rs.dressedRanked(plot, themes.light), meta.label, 900);
      };
      take(id.what, name, figure, all, meta);
    },

    exportResults(clicks, rows, meta, themes) {
      const id = pressed(clicks);
      if (!id) return;
      const plot = document.querySelector(`#${id.source}-figure .js-plotly-plot`);
      const title = id.source === 'success' ? 'Success rate, 95 % Wilson interval' : 'Difference to the baseline, paired, 95 % interval';
      const light = () => ({ data: plot.data, layout: { ...plot.layout, template: themes.light.template } });
      take(id.what, `${meta.run}-${id.source}`, () => single(plot, light(), title, 760), rows, meta);
    },
  });
})(window.robosteer);
